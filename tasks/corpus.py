"""Look at the corpus: which files, which content."""

from pathlib import Path

from prefect import task

from lmcore.corpus.scan import Corpus, open_corpus
from lmcore.settings.config import RunConfig
from tasks.policies import NEVER_CACHED, RETRIED
from tasks.progress import report_progress


@task(
    name="corpus",
    task_run_name="look at {config.corpus.label}",
    **NEVER_CACHED,
    **RETRIED,
)
def look_at_corpus(config: RunConfig) -> tuple[Corpus, Path]:
    """The corpus in figures, and the opened store. Never cached: noticing what is new is its purpose."""
    with report_progress("corpus", "bytes"):
        return open_corpus(config)
