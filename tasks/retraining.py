"""The tasks of a retraining: what is new, the gate, the promotion, the page, and the push."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.blocks.system import Secret
from prefect.events import emit_event

from lmcore.dataset.manifest import Dataset
from lmcore.errors import LMError
from lmcore.registry.push import push
from lmcore.registry.versions import Version, champion
from lmcore.report.model_history import model_history
from lmcore.retraining.challenge import compare, record_decision, require_comparable
from lmcore.retraining.gate import Decision
from lmcore.retraining.new_documents import NewDocuments, split_by_age
from lmcore.settings.retraining import RetrainConfig
from tasks.locks import gpu_slot
from tasks.pages import page_key, page_of_run
from tasks.policies import NEVER_CACHED, RETRIED


@task(name="champion", task_run_name="look at the champion", **NEVER_CACHED)
def look_at_champion(store: Path, name: str) -> Version | None:
    """The champion, if there is one. Never cached, because a person may change it."""
    found = champion(store, name)
    get_run_logger().info("champion: %s", found or "none yet")
    return found


@task(name="news", task_run_name="look for new text", **NEVER_CACHED)
def look_for_new_text(dataset: Dataset, best: Version) -> tuple[Dataset, NewDocuments]:
    """The dataset split by age, and the new documents in it. Raises as ``require_comparable`` does."""
    require_comparable(best, dataset.folder)
    by_age, news = split_by_age(dataset, best.dataset)
    get_run_logger().info(
        "new since %s: %s documents, %s bytes", best, f"{news.new_documents:,}", f"{news.new_bytes:,}"
    )
    return by_age, news


@task(name="gate", task_run_name="champion against challenger", **NEVER_CACHED)
def gate(config: RetrainConfig, best: Version | None, run: Path) -> Decision:
    """Score the champion on the challenger's evaluation text, and decide."""
    if best is not None:
        from lmcore.retraining.scoring import score_champion, score_on_anchor  # and with it torch

        with gpu_slot(config):
            score_champion(best, run)
            score_on_anchor(best, run)
    decision = compare(best, run, config.gate)
    get_run_logger().info(decision.verdict)
    return decision


@task(name="promotion", task_run_name="keep the version", **NEVER_CACHED)
def promotion(
    config: RetrainConfig, best: Version | None, run: Path, decision: Decision, key: str, store: Path
) -> Version:
    """Store the challenger as a version, and promote it or record why not."""
    version = record_decision(store, config.retraining.model_name, best, run, decision, key, config.gate, page_of_run())
    emit_event(
        f"lm.model.{'promoted' if decision.promoted else 'refused'}",
        resource={"prefect.resource.id": f"lm.model.{version.model}", "prefect.resource.name": str(version)},
        payload={"version": str(version), "reasons": decision.reasons},
    )
    return version


@task(name="retraining report", task_run_name="retraining report", **NEVER_CACHED)
def retraining_report(page: str) -> None:
    """Show the page of a retraining as an artifact."""
    key = page_key("retraining")
    create_markdown_artifact(key=key, markdown=page, description=page.partition("\n")[0].lstrip("# "))


@task(name="history", task_run_name="history of {name}", **NEVER_CACHED)
def show_history(store: Path, name: str) -> None:
    """Show what the retrainings of a model made in a year. An error here loses the page, never the run."""
    try:
        page = model_history(store, name)
        create_markdown_artifact(key=page_key("model"), markdown=page.markdown, description=page.description)
    except LMError as error:
        get_run_logger().warning("the page of %s is not shown: %s", name, error)


def use_hub_token() -> None:
    """Take the token of the Hugging Face hub from Prefect's block Secret ``hf-token``, if HF_TOKEN is not set."""
    if not os.environ.get("HF_TOKEN"):
        with suppress(ValueError):  # there is none
            secret: Any = Secret.load("hf-token")
            os.environ["HF_TOKEN"] = secret.get()


@task(name="push", task_run_name="push {version} to {repository}", **NEVER_CACHED, **RETRIED)
def push_to_hub(version: Version, repository: str) -> str:
    """Push a version to a repository of the hub. Returns the address of the commit."""
    use_hub_token()
    commit = push(version, repository)
    get_run_logger().info("%s is in %s: %s", version, repository, commit)
    return commit
