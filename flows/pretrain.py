"""Corpus -> tokenizer -> shards -> blocks -> training -> evaluation -> export -> report."""

from pathlib import Path
from textwrap import indent

from prefect import flow, get_run_logger
from pydantic import BaseModel, ConfigDict

from flows.command import run_command
from flows.prepare_data import Stages, named, prepare
from lmcore.config import RunConfig
from lmcore.errors import StoppedError
from lmcore.tokenization import Dataset
from lmcore.tokenizer import TokenizerInfo
from tasks.dataset import blocks
from tasks.evaluation import evaluation, export_model
from tasks.pages import tag_run
from tasks.policies import start_again, stopped
from tasks.reporting import loss_report
from tasks.training import training


class Pretrained(BaseModel):
    """What the flow returns, and the last line of the command."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    run_dir: Path
    dataset_id: str
    model_dir: Path
    report: Path
    picture: Path
    step: int
    valid_loss: float
    valid_perplexity: float
    valid_bits_per_byte: float
    tokens_per_second: float
    samples: list[str]
    account: str
    warnings: list[str]
    cached: dict[str, bool]

    def summary(self) -> str:
        """Lines for a person."""
        samples = "\n\n".join(indent(text, "    ", lambda line: True) for text in self.samples)
        return (
            f"samples\n\n{samples}\n\n"
            f"validation  {self.valid_loss:.4f} nats per token, perplexity {self.valid_perplexity:.2f}, "
            f"{self.valid_bits_per_byte:.4f} bits per byte\n"
            f"speed       {self.tokens_per_second:,.0f} tokens/s\n"
            f"text        {self.account}\n"
            f"report      {self.report}\n"
            f"picture     {self.picture}\n"
            f"model       {self.model_dir}" + "".join(f"\nwarning     {warning}" for warning in self.warnings)
        )


@flow(
    name="pretrain",
    flow_run_name=named(lambda config: f"pretrain {config.model_label}"),
    persist_result=False,
    result_serializer="json",
    on_crashed=[start_again],
)
def pretrain(config: RunConfig) -> Pretrained:
    """Train a language model on a corpus, evaluate it, export it and report."""
    stages = Stages()
    try:
        dataset, tokenizer, store = prepare(config, stages)
        return trained_model(config, stages, dataset, tokenizer, store)
    except StoppedError as stop:
        unfinished: Pretrained = stopped(stop)
        return unfinished


def trained_model(
    config: RunConfig, stages: Stages, dataset: Dataset, tokenizer: TokenizerInfo, store: Path
) -> Pretrained:
    """The stages from a dataset to an exported model and its report."""
    tag_run("continued" if config.train.init_from else config.model.architecture)
    counted = stages.run(blocks, config, dataset)
    trained = stages.run(training, config, dataset, tokenizer, store)
    score = stages.run(evaluation, trained)
    exported = stages.run(export_model, trained, score)
    page = stages.run(loss_report, config, trained, score, counted)
    get_run_logger().info(
        "%s at step %d: %.4f nats per token, %.4f bits per byte; the model is in %s, the report in %s",
        trained.run,
        trained.step,
        score.nats_per_token,
        score.bits_per_byte,
        exported.model_dir,
        page.path,
    )
    return Pretrained(
        run_dir=trained.folder,
        dataset_id=dataset.id,
        model_dir=exported.model_dir,
        report=page.path,
        picture=page.picture,
        step=trained.step,
        valid_loss=score.nats_per_token,
        valid_perplexity=score.perplexity,
        valid_bits_per_byte=score.bits_per_byte,
        tokens_per_second=trained.tokens_per_second,
        samples=page.samples,
        account=dataset.account(),
        warnings=dataset.warnings,
        cached=stages.cached,
    )


if __name__ == "__main__":
    run_command(pretrain, "Train a language model on a corpus.")
