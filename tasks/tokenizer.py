"""Train or load the tokenizer."""

from pathlib import Path

from prefect import task

from lmcore.corpus.scan import Corpus
from lmcore.settings.config import RunConfig
from lmcore.store.remembered_inputs import Inputs
from lmcore.tokenizer.tokenizer import TokenizerInfo, make_tokenizer, tokenizer_inputs
from tasks.policies import stage
from tasks.progress import report_progress


def _content(config: RunConfig, corpus: Corpus, store: Path) -> Inputs:
    return {"store": str(store), **tokenizer_inputs(config.tokenizer, corpus)}


@task(name="tokenizer", task_run_name="tokenizer for {config.corpus.label}", **stage(_content))
def tokenizer(config: RunConfig, corpus: Corpus, store: Path) -> TokenizerInfo:
    """A tokenizer in the store, trained on the corpus or loaded from config.tokenizer.source."""
    with report_progress("tokenizer", "bytes") as progress:
        return make_tokenizer(config.tokenizer, config.corpus, corpus, store, progress)
