"""Buttons for the models of a store: each is a form, one call into lmcore, and a page of what came of it."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.states import Failed
from pydantic import Field

from flows.store import BUTTON, StoreChoice
from lmcore.errors import RegistryError
from lmcore.receipt import check_receipt, difference_rows, program_differences
from lmcore.registry import NUMBER, champion, find_version, history_rows, models, promote, prune, rollback
from lmcore.run import find_folder
from lmcore.section import NAME, Text
from tasks.pages import show_table
from tasks.retraining import push_to_hub

_VERSION = f"^({NUMBER})?$"


class ModelChoice(StoreChoice):
    """A model of a store."""

    model_name: str = Field("lm", pattern=f"^{NAME}$")
    """Name of the model: models/NAME in the store."""

    def named(self, version: str) -> str:
        """NAME/v0001, or NAME for the champion."""
        return f"{self.model_name}/{version}" if version else self.model_name


class EvaluationChoice(ModelChoice):
    """A model, and the text that it is scored on."""

    model: Text = ""
    """What is scored: a version such as lm/v0002, a run's name or folder, a checkpoint, or any folder that transformers
    opens. Empty: the champion of the named model."""
    corpus: list[Text] = Field([])
    """Files, folders, globs or URLs of text; each is a source of its own in the table. Empty: the text that was held
    out when the champion of the named model was trained."""

    @property
    def label(self) -> str:
        return self.model or self.model_name


class VersionChoice(ModelChoice):
    """A version of a model."""

    version: str = Field("", pattern=_VERSION)
    """Such as v0001. Empty: the champion."""

    @property
    def label(self) -> str:
        return self.named(self.version)


class DifferenceChoice(VersionChoice):
    """Two versions of a model."""

    other: str = Field("", pattern=_VERSION)
    """Such as v0002. Empty: the champion."""


class PushChoice(VersionChoice):
    """A version of a model, and where on the Hugging Face hub it is to be."""

    repository: str = Field(pattern=f"^{NAME}/{NAME}$")
    """A repository such as user/name, made private if it is not there. The token is HF_TOKEN's on the machine that
    runs this."""


class RollbackChoice(ModelChoice):
    """A version of a model that was its champion."""

    version: str = Field("", pattern=_VERSION)
    """Such as v0001. Empty: the champion before this one."""
    reason: Text = Field("by hand", min_length=1)
    """What the history is to say of it."""


class PromotionChoice(RollbackChoice):
    """A version that is to be used."""

    version: str = Field(pattern=f"^{NUMBER}$")
    """Such as v0002."""
    expected: str = Field("", pattern=_VERSION)
    """The champion that it is to replace: nothing is changed if another is in use by then. Empty: there is none yet."""
    force: bool = False
    """Promote it although the gate refused it."""


class PruneChoice(ModelChoice):
    """How many versions of a model stay."""

    keep: int = Field(5, ge=0, le=1_000_000)
    """Newest versions to keep, beside the champion and what one of these began with."""
    dry_run: bool = True
    """Only say what would be removed."""


@flow(name="evaluate", flow_run_name="evaluate {choice.label}", **BUTTON | {"persist_result": True})
def evaluate_model(choice: EvaluationChoice) -> dict[str, Any]:
    """How well a model predicts text, by source and by age; the figures."""
    from lmcore.scoring import evaluation_texts, score_texts  # and with it torch: the other buttons start without

    name = choice.model or str(find_version(choice.folder, choice.model_name))
    texts = evaluation_texts(choice.folder, choice.corpus, model=choice.model_name)
    scores = score_texts(find_folder(choice.folder, name), texts)
    figures = scores.figures()
    text = ", ".join(choice.corpus) or f"what was held out of {choice.model_name}"
    show_table("scores", scores.rows(), f"{name} on {text}")
    return {"model": name, **figures}


@flow(name="verify", flow_run_name="verify {choice.label}", **BUTTON)
def verify_version(choice: VersionChoice) -> Any:
    """Read all that a version was made from again, down to the corpus; failed if something is not what it was."""
    version = find_version(choice.folder, choice.label)
    found = list(check_receipt(version))
    said = f"{version} no longer matches its receipt ({len(found)}): {found[0]}" if found else f"{version}: all matches"
    show_table(f"verify-{choice.model_name}", [{"no longer matches": line} for line in found], said)
    if found:
        return Failed(message=said)
    for line in program_differences(version.receipt()):
        get_run_logger().info("made by another program: %s", line)
    return str(version)


@flow(name="diff", flow_run_name="differences of {choice.model_name}", **BUTTON)
def diff_versions(choice: DifferenceChoice) -> int:
    """In what two versions differ, as a table; the number of differences."""
    one, other = (find_version(choice.folder, choice.named(each)) for each in (choice.version, choice.other))
    rows = difference_rows(one, other)
    show_table(f"diff-{choice.model_name}", rows, f"{one} and {other}")
    return len(rows)


@flow(name="rollback", flow_run_name="roll {choice.model_name} back", **BUTTON)
def rollback_champion(choice: RollbackChoice) -> str:
    """Use the champion before this one again, or a named version; its id."""
    version = rollback(choice.folder, choice.model_name, choice.version, reason=choice.reason)
    _show_versions(choice)
    return version.id


@flow(name="promote", flow_run_name="promote {choice.model_name} {choice.version}", **BUTTON)
def promote_version(choice: PromotionChoice) -> str:
    """Use a version, whatever the gate said of it if forced; its id."""
    store, name, expected = choice.folder, choice.model_name, choice.expected or None
    promote(store, name, choice.version, expected=expected, reason=choice.reason, force=choice.force)
    _show_versions(choice)
    return choice.version


@flow(name="push", flow_run_name="push {choice.label} to {choice.repository}", **BUTTON)
def push_version(choice: PushChoice) -> str:
    """Put a version into a repository of the Hugging Face hub; the address of the commit."""
    commit: str = push_to_hub(find_version(choice.folder, choice.label), choice.repository)
    _show_versions(choice)
    return commit


@flow(name="prune", flow_run_name="prune {choice.model_name}", **BUTTON)
def prune_versions(choice: PruneChoice) -> list[str]:
    """Remove old versions, never the champion; which ones, or which it would be."""
    gone = prune(choice.folder, choice.model_name, choice.keep, choice.dry_run)
    done = "to be removed" if choice.dry_run else "removed"
    rows = [{"version": version} for version in gone]
    show_table(f"pruned-{choice.model_name}", rows, f"{done} of {choice.model_name}: {len(gone)}")
    return gone


@flow(name="versions", flow_run_name="versions of {choice.model_name}", **BUTTON)
def versions(choice: ModelChoice) -> None:
    """The versions of a model, its champion and its history, as a table."""
    _show_versions(choice)


def _show_versions(choice: ModelChoice) -> None:
    """Raises RegistryError for a model that is not there: an empty table would look like an answer."""
    if choice.model_name not in (known := models(choice.folder)):
        there = ", ".join(known) or "none"
        raise RegistryError(f"there is no model {choice.model_name} in {choice.folder} (there are: {there})")
    current = champion(choice.folder, choice.model_name)
    used = f"{choice.model_name}: {current.id if current else 'none'} is in use"
    show_table(f"versions-{choice.model_name}", history_rows(choice.folder, choice.model_name), used)


BUTTONS = [
    evaluate_model,
    verify_version,
    diff_versions,
    rollback_champion,
    promote_version,
    push_version,
    prune_versions,
    versions,
]
