"""Corpus -> tokenizer -> shards -> blocks -> training -> evaluation -> export -> report."""

from pathlib import Path
from typing import Literal

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, ConfigDict

from flows.command import run_command
from flows.form import Advanced, Document, Length, Minutes, Name, Size, TextFiles, chosen, form
from flows.prepare_data import Stages, prepare
from lmcore.cli.app import PRETRAIN
from lmcore.cli.options import Store, Texts
from lmcore.dataset.manifest import Dataset
from lmcore.errors import StoppedError
from lmcore.report.summary import summary
from lmcore.settings.config import RunConfig
from lmcore.tokenizer.tokenizer import TokenizerInfo
from lmcore.training.schedule import length_settings
from tasks.pages import form_link, name_run, page_key, page_of_run, tag_run
from tasks.policies import stopped
from tasks.stages import blocks, evaluation, export_model, loss_report, training


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
    page: str
    """Address of the flow run in the Prefect UI; empty where the server ends with the run."""
    cached: dict[str, bool]

    def summary(self) -> str:
        """Lines for a person."""
        return summary(self.run_dir, self.samples, self.account, self.warnings, self.page)


@form(PRETRAIN)
def pretrain(
    text: TextFiles = (),
    document: Document = "auto",
    size: Size = "tiny",
    length: Length = "",
    max_minutes: Minutes = 0,
    prompts: Texts = (),
    name: Name = "",
    start: Literal["continue", "again"] = "continue",
    store: Store = "",
    advanced: Advanced = "",
) -> Pretrained:
    """Train a language model on a corpus, evaluate it, export it and report.

    Args:
        size: The model and its training: tiny (minutes on two cores), small (about 30 million parameters, one GPU) or
            base (GPT-2 124M, a large GPU). custom: only what advanced says.
        length: How long to train: 700 steps, 2.5M tokens or 3 epochs. Empty: as the size says.
        max_minutes: Minutes after which this start saves a checkpoint and stops; the next one continues. 0: no such
            limit.
        prompts: What the model continues for the report, one sample each. Empty: as the size says, and with a
            text of your own the first words of three validation documents.
        name: Name of the run's folder. Empty: made from the settings and the text, so that equal runs share a folder.
        start: What happens when this run is there already. continue: it goes on from its last checkpoint. again: it is
            trained from the beginning.
    """
    fields = {
        "corpus": {"paths": list(text), "document": document},
        "train": {**length_settings(length), "max_minutes": max_minutes},
        "sample": {"prompts": list(prompts)},
        "run": name,
        "fresh": start == "again",
        "store": store,
    }
    config = chosen(RunConfig, size, advanced, fields)
    name_run(f"pretrain {config.model_label}", config)
    stages = Stages()
    try:
        trained = trained_model(config, stages, *prepare(config, stages))
    except StoppedError as stop:
        unfinished: Pretrained = stopped(stop)
        return unfinished
    if link := form_link(length=f"{2 * trained.step} steps", name=""):
        again = f"[Train this again with twice the steps]({link})"
        create_markdown_artifact(
            again, key=page_key("again"), description=f"The form of {trained.run_dir.name}, filled in"
        )
    return trained


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
        account=dataset.ledger_summary(),
        warnings=dataset.warnings,
        page=page_of_run(),
        cached=stages.cached,
    )


if __name__ == "__main__":
    run_command(pretrain, PRETRAIN)
