"""Text to token ids in memory-mapped shards."""

from pathlib import Path

from prefect import get_run_logger, task
from prefect.artifacts import Artifact, MarkdownArtifact

from lmcore.corpus.scan import Corpus
from lmcore.dataset.tokenization import Dataset, dataset_inputs, tokenize
from lmcore.report.report import data_page, tokenizer_page
from lmcore.settings.config import RunConfig
from lmcore.store.remembered_inputs import Inputs
from lmcore.tokenizer.tokenizer import TokenizerInfo
from tasks.policies import stage
from tasks.progress import report_progress


def _content(config: RunConfig, corpus: Corpus, tokenizer: TokenizerInfo, store: Path) -> Inputs:
    return {"store": str(store), **dataset_inputs(config.corpus, corpus, tokenizer)}


def _page(dataset: Dataset) -> list[Artifact]:
    about = f"{dataset.tokens:,} tokens to train on, dataset {dataset.id}"
    return [
        MarkdownArtifact(key="data", markdown=data_page(dataset), description=about),
        MarkdownArtifact(
            key="tokenizer", markdown=tokenizer_page(dataset), description=f"Tokenizer {dataset.tokenizer_id}"
        ),
    ]


@task(
    name="tokenization",
    task_run_name="tokenize {config.corpus.label}",
    **stage(_content, page=_page),
)
def tokenization(config: RunConfig, corpus: Corpus, tokenizer: TokenizerInfo, store: Path) -> Dataset:
    """Encode what the store does not hold yet. Called directly, so that a cancel reaches it."""
    with report_progress("tokenizing", "bytes") as progress:
        dataset = tokenize(config.corpus, corpus, tokenizer, store, progress)
    get_run_logger().info(dataset.account())
    return dataset
