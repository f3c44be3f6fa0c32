"""What a retraining looks at, decides and shows."""

import re
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event

from lmcore.challenge import Champion, judge, require_comparable, settle
from lmcore.gate import Decision
from lmcore.news import News, told_apart
from lmcore.registry import Version, champion, history
from lmcore.retraining import RetrainConfig
from lmcore.tokenization import Dataset

_NEVER_CACHED: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "result_serializer": "json"}
"""What is looked at may have changed, and what is done is found again in the store."""


@task(name="champion", task_run_name="look at the champion", **_NEVER_CACHED)
def look_at_champion(store: Path, name: str) -> Champion | None:
    """The version in use. Never cached: somebody may have moved it."""
    found = Champion.of(store, name)
    get_run_logger().info("champion: %s", "none yet" if found is None else found.version)
    return found


@task(name="news", task_run_name="look for new text", **_NEVER_CACHED)
def look_for_news(dataset: Dataset, champion: Champion) -> tuple[Dataset, News]:
    """The dataset told apart by age, and what is new in it. Raises as ``require_comparable`` does."""
    require_comparable(champion, dataset.folder)
    apart, news = told_apart(dataset, champion.dataset)
    get_run_logger().info(
        "new since %s: %s documents, %s bytes", champion.version, f"{news.new_documents:,}", f"{news.new_bytes:,}"
    )
    return apart, news


@task(name="gate", task_run_name="champion against challenger", **_NEVER_CACHED)
def gate(config: RetrainConfig, champion: Champion | None, run: Path) -> Decision:
    """Score both models on the same text, and decide. The scores are found again in the run's folder."""
    decision = judge(champion, run, config.gate)
    get_run_logger().info(decision.verdict)
    return decision


@task(name="promotion", task_run_name="keep the version", **_NEVER_CACHED)
def promotion(
    config: RetrainConfig, champion: Champion | None, run: Path, decision: Decision, key: str, store: Path
) -> Version:
    """Keep the challenger, and make it the champion or record why not."""
    version = settle(store, config.retraining.model_name, champion, run, decision, key)
    emit_event(
        f"lm.model.{'promoted' if decision.promoted else 'refused'}",
        resource={"prefect.resource.id": f"lm.model.{version.model}", "prefect.resource.name": str(version)},
        payload={"version": str(version), "reasons": decision.reasons},
    )
    return version


@task(name="retraining report", task_run_name="retraining report", **_NEVER_CACHED)
def retraining_report(page: str) -> None:
    """What was looked at and what was decided, as an artifact."""
    create_markdown_artifact(key="retraining", markdown=page, description="Retraining")


@task(name="versions", task_run_name="versions of {name}", **_NEVER_CACHED)
def show_versions(store: Path, name: str) -> None:
    """A model's history as a table, the newest first."""
    current = champion(store, name)
    rows = [
        {"time": event["time"], "event": event["event"], "version": event["version"], "reason": event["reason"]}
        for event in reversed(history(store, name))
    ]
    create_table_artifact(
        rows,
        key=f"versions-{artifact_name(name)}",
        description=f"{name}: {current.id if current else 'none'} is in use",
    )


def artifact_name(name: str) -> str:
    """Prefect's keys of artifacts hold small letters, digits and dashes."""
    return re.sub("[^a-z0-9]+", "-", name.lower())
