"""Look at the corpus: which files, which content."""

from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from lmcore.config import RunConfig
from lmcore.corpus import Corpus, open_corpus
from tasks.policies import worth_a_retry


@task(
    name="corpus",
    task_run_name="look at {config.corpus.label}",
    cache_policy=NO_CACHE,
    persist_result=False,
    result_serializer="json",
    retries=2,
    retry_delay_seconds=10,
    retry_condition_fn=worth_a_retry,
)
def look_at_corpus(config: RunConfig) -> tuple[Corpus, Path]:
    """The corpus in figures, and the opened store. Never cached: noticing what is new is its purpose."""
    return open_corpus(config)
