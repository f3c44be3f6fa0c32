"""Buttons for the models of a store: take the champion back, put another version in its place, see what there is."""

from pathlib import Path

from prefect import flow
from pydantic import Field

from lmcore.config import default_store
from lmcore.registry import NUMBER, promote, rollback
from lmcore.section import NAME, Section
from tasks.logs import quiet_prefect
from tasks.retraining import show_versions


class ModelChoice(Section):
    """A model of a store."""

    model_name: str = Field("lm", pattern=f"^{NAME}$")
    """Name of the model: models/NAME in the store."""
    store: Path = Field(default_factory=default_store)
    """Folder of everything that is made. Default: the environment variable LM_STORE, else ./store."""


class VersionChoice(ModelChoice):
    """A version of a model."""

    version: str = Field("", pattern=f"^({NUMBER})?$")
    """Such as v0001. Empty: for a rollback the champion before this one."""
    reason: str = Field("by hand", min_length=1)
    """What the history is to say of it."""


class PromotionChoice(VersionChoice):
    """A version that is to be used."""

    version: str = Field(pattern=f"^{NUMBER}$")
    """Such as v0002."""
    expected: str = Field("", pattern=f"^({NUMBER})?$")
    """The champion that it is to replace: nothing is changed if another is in use by then. Empty: there is none yet."""
    force: bool = False
    """Promote it although the gate refused it."""


@flow(name="rollback", flow_run_name="roll {choice.model_name} back", persist_result=False, result_serializer="json")
def rollback_champion(choice: VersionChoice) -> str:
    """Use the champion before this one again, or a named version; its id."""
    quiet_prefect()
    version = rollback(choice.store.expanduser(), choice.model_name, choice.version, reason=choice.reason)
    show_versions(choice.store.expanduser(), choice.model_name)
    return version.id


@flow(
    name="promote",
    flow_run_name="promote {choice.model_name} {choice.version}",
    persist_result=False,
    result_serializer="json",
)
def promote_version(choice: PromotionChoice) -> str:
    """Use a version, whatever the gate said of it if forced; its id."""
    quiet_prefect()
    store = choice.store.expanduser()
    expected, force = choice.expected or None, choice.force
    version = promote(store, choice.model_name, choice.version, expected=expected, reason=choice.reason, force=force)
    show_versions(store, choice.model_name)
    return version.id


@flow(name="versions", flow_run_name="versions of {choice.model_name}", persist_result=False, result_serializer="json")
def versions(choice: ModelChoice) -> None:
    """The versions of a model, its champion and its history, as a table."""
    quiet_prefect()
    show_versions(choice.store.expanduser(), choice.model_name)
