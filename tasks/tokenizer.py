"""Train or load the tokenizer."""

from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact

from lmcore.config import RunConfig
from lmcore.corpus import Corpus
from lmcore.inputs import Inputs
from lmcore.tokenizer import TokenizerInfo, make_tokenizer, tokenizer_inputs
from tasks.policies import stage


def _content(config: RunConfig, corpus: Corpus, store: Path) -> Inputs:
    return {"store": str(store), **tokenizer_inputs(config.tokenizer, corpus)}


@task(name="tokenizer", task_run_name="tokenizer", **stage(_content))
def tokenizer(config: RunConfig, corpus: Corpus, store: Path) -> TokenizerInfo:
    """A tokenizer in the store, trained on the corpus or loaded from config.tokenizer.source."""
    info = make_tokenizer(config.tokenizer, config.corpus, corpus, store)
    create_table_artifact(
        key="tokenizer",
        table=info.rows(),
        description=f"Tokenizer {info.id}",
    )
    return info
