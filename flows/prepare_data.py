"""Corpus -> tokenizer -> shards -> blocks."""

from pathlib import Path
from typing import Any, TypeVar

from prefect import Task, get_run_logger
from pydantic import BaseModel, ConfigDict

from flows.command import run_command
from flows.form import Advanced, Document, Size, TextFiles, chosen, form
from lmcore.cli.app import PREPARE
from lmcore.cli.options import Store
from lmcore.dataset.manifest import Dataset
from lmcore.errors import StoppedError
from lmcore.settings.config import RunConfig
from lmcore.tokenizer.tokenizer import TokenizerInfo
from tasks.pages import name_run, tag_run
from tasks.stages import blocks, look_at_corpus, tokenization, tokenizer

Result = TypeVar("Result")


class Stages:
    """Runs tasks directly (so that a cancel reaches them) and keeps which of them were cached."""

    def __init__(self) -> None:
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
    corpus, store = stages.run(look_at_corpus, config)
    trained = known or stages.run(tokenizer, config, corpus, store)
    dataset = stages.run(tokenization, config, corpus, trained, store)
    for warning in dataset.warnings:  # here, so that they come again at each start that finds the dataset made
        get_run_logger().warning(warning)
    tag_run(f"corpus {config.corpus.label}", f"dataset {dataset.id}")
    return dataset, trained, store


@form(PREPARE)
def prepare_data(
    text: TextFiles = (),
    document: Document = "auto",
    size: Size = "tiny",
    read_again: bool = False,
    store: Store = "",
    advanced: Advanced = "",
) -> PreparedData:
    """Tokenize a corpus into the store.

    Args:
        size: The model that the text is for, which decides vocabulary and block size: tiny, small or base. custom:
            only what advanced says.
        read_again: Read every file again, even where size and time say that it is unchanged.
        advanced: All other settings, as TOML: a line [tokenizer] and below it vocab_size = 4000. They win over the
            size and over the fields above.
    """
    fields = {"corpus": {"paths": list(text), "document": document}, "rehash": read_again, "store": store}
    config = chosen(RunConfig, size, advanced, fields, unused=("model", "train", "sample", "run", "fresh"))
    name_run("prepare data", config)
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
        account=dataset.ledger_summary(),
        warnings=dataset.warnings,
        cached=stages.cached,
    )


if __name__ == "__main__":
    run_command(prepare_data, PREPARE)
