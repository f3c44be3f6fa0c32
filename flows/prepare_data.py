"""Corpus -> tokenizer -> shards -> blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from prefect import Task, flow, get_run_logger
from prefect.runtime import deployment, flow_run
from pydantic import BaseModel, ConfigDict

from flows.command import run_command
from lmcore import clock
from lmcore.config import RunConfig
from lmcore.errors import ConfigError, StoppedError
from lmcore.tokenization import Dataset
from lmcore.tokenizer import TokenizerInfo
from tasks.corpus import look_at_corpus
from tasks.dataset import blocks
from tasks.pages import tag_run
from tasks.policies import start_again
from tasks.server import keep_terminations, tie_ends
from tasks.tokenization import tokenization
from tasks.tokenizer import tokenizer

Result = TypeVar("Result")


class Stages:
    """Runs tasks directly (so that a cancel reaches them) and keeps which of them were cached."""

    def __init__(self) -> None:
        tie_ends()
        keep_terminations()
        self.cached: dict[str, bool] = {}

    def run(self, stage: Task[..., Result], *arguments: Any) -> Result:
        """Raises what the task raised, and StoppedError when it was asked to end before its end."""
        state: Any = stage(*arguments, return_state=True)
        if state.is_cancelled():
            raise StoppedError(state.message)
        self.cached[stage.name] = state.name == "Cached"
        result: Result = state.result()
        return result


class PreparedData(BaseModel):
    """What the flow returns."""

    model_config = ConfigDict(frozen=True)

    dataset_id: str
    manifest: Path
    tokenizer_id: str
    documents: int
    tokens: int
    validation_tokens: int
    skipped_bytes: int
    unaccounted_bytes: int
    account: str
    warnings: list[str]
    cached: dict[str, bool]

    def summary(self) -> str:
        """Lines for a person."""
        return (
            f"dataset     {self.manifest}\n"
            f"            {self.documents:,} documents, {self.tokens:,} tokens, "
            f"{self.validation_tokens:,} more to validate on\n"
            f"ledger      {self.account}" + "".join(f"\nwarning     {warning}" for warning in self.warnings)
        )


def prepare(
    config: RunConfig, stages: Stages, known: TokenizerInfo | None = None
) -> tuple[Dataset, TokenizerInfo, Path]:
    """The stages that all flows share: dataset, tokenizer (``known``, or by the settings), and their store."""
    if config.corpus.filter and deployment.id:
        raise ConfigError("corpus.filter names code, and a deployment runs only its own: set it from Python or a file")
    corpus, store = stages.run(look_at_corpus, config)
    trained = known or stages.run(tokenizer, config, corpus, store)
    dataset = stages.run(tokenization, config, corpus, trained, store)
    for warning in dataset.warnings:  # here, so that they come again at each start that finds the dataset made
        get_run_logger().warning(warning)
    tag_run(f"corpus {config.corpus.label}", f"dataset {dataset.id}")
    return dataset, trained, store


def named(what: Callable[[Any], str], kind: type[RunConfig] = RunConfig) -> Callable[[], str]:
    """A name for the runs of a flow whose settings are of this kind: what it does, on which corpus, when."""

    def name() -> str:
        config = kind.model_validate(flow_run.parameters["config"])
        return f"{what(config)} on {config.corpus.label} {clock.utc():%Y-%m-%d %H:%M} UTC"

    return name


@flow(
    name="prepare_data",
    flow_run_name=named(lambda config: "prepare data"),
    persist_result=False,
    result_serializer="json",
    on_crashed=[start_again],
)
def prepare_data(config: RunConfig) -> PreparedData:
    """Tokenize a corpus into the store."""
    stages = Stages()
    dataset, trained, _ = prepare(config, stages)
    stages.run(blocks, config, dataset)
    return PreparedData(
        dataset_id=dataset.id,
        manifest=dataset.folder / "manifest.json",
        tokenizer_id=trained.id,
        documents=dataset.documents,
        tokens=dataset.tokens,
        validation_tokens=dataset.validation_tokens,
        skipped_bytes=dataset.skipped_bytes,
        unaccounted_bytes=dataset.unaccounted_bytes,
        account=dataset.account(),
        warnings=dataset.warnings,
        cached=stages.cached,
    )


if __name__ == "__main__":
    run_command(prepare_data, "Tokenize a corpus into the store.")
