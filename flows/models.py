"""Buttons for the models of a store: each is a form, one call into lmcore, and a page of what came of it."""

from pathlib import Path
from typing import Annotated, Any

from prefect import get_run_logger
from prefect.states import Failed
from pydantic import Field

from flows.form import BUTTON, Count, ModelName, SomeText, Texts, folder_of, form
from lmcore.errors import RegistryError
from lmcore.registry.find import find
from lmcore.registry.receipt import check_receipt, difference_rows, program_differences
from lmcore.registry.registry import promote, prune, rollback
from lmcore.registry.versions import NUMBER, champion, find_version, history_rows, models
from lmcore.settings.section import NAME, Text
from tasks.pages import show_table
from tasks.retraining import push_to_hub

ChosenVersion = Annotated[str, Field(pattern=f"^({NUMBER})?$")]
"""Such as v0001. Empty: what the field says."""


@form(name="evaluate", flow_run_name="evaluate {model_name} {model}", **BUTTON | {"persist_result": True})
def evaluate_model(
    model_name: ModelName = "lm", model: Text = "", text: Texts = (), store: Text = ""
) -> dict[str, Any]:
    """How well a model predicts text, by source and by age; the figures.

    Args:
        model_name: Name of the model: models/NAME in the store.
        model: What is scored instead of the champion of the named model: a version such as lm/v0002, a run's name or
            folder, a checkpoint, or any folder that transformers opens. Empty: the champion.
        text: Files, folders, globs or URLs of text; each is a source of its own in the table. Empty: the text that was
            held out when the champion of the named model was trained.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    from lmcore.retraining.evaluation_texts import evaluation_texts
    from lmcore.retraining.scoring import score_texts  # and with it torch: the other buttons start without

    folder = folder_of(store)
    name = model or str(find_version(folder, model_name))
    scores = score_texts(
        find(folder, name, "folder", "run", "version"), evaluation_texts(folder, list(text), model=model_name)
    )
    figures = scores.figures()
    scored_on = ", ".join(text) or f"what was held out of {model_name}"
    show_table("scores", scores.rows(), f"{name} on {scored_on}")
    return {"model": name, **figures}


@form(name="verify", flow_run_name="verify {model_name} {version}", **BUTTON)
def verify_version(model_name: ModelName = "lm", version: ChosenVersion = "", store: Text = "") -> Any:
    """Read all that a version was made from again, down to the corpus; failed if something is not what it was.

    Args:
        model_name: Name of the model: models/NAME in the store.
        version: Such as v0001. Empty: the champion.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    found = find_version(folder_of(store), _named(model_name, version))
    lines = list(check_receipt(found))
    said = f"{found} no longer matches its receipt ({len(lines)}): {lines[0]}" if lines else f"{found}: all matches"
    show_table(f"verify-{model_name}", [{"no longer matches": line} for line in lines], said)
    if lines:
        return Failed(message=said)
    for line in program_differences(found.receipt()):
        get_run_logger().info("made by another program: %s", line)
    return str(found)


@form(name="diff", flow_run_name="differences of {model_name}", **BUTTON)
def diff_versions(
    model_name: ModelName = "lm", version: ChosenVersion = "", other: ChosenVersion = "", store: Text = ""
) -> int:
    """In what two versions differ, as a table; the number of differences.

    Args:
        model_name: Name of the model: models/NAME in the store.
        version: Such as v0001. Empty: the champion.
        other: The version to compare it with, such as v0002. Empty: the champion.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    one, two = (find_version(folder_of(store), _named(model_name, each)) for each in (version, other))
    rows = difference_rows(one, two)
    show_table(f"diff-{model_name}", rows, f"{one} and {two}")
    return len(rows)


@form(name="rollback", flow_run_name="roll {model_name} back", **BUTTON)
def rollback_champion(
    model_name: ModelName = "lm", version: ChosenVersion = "", reason: SomeText = "by hand", store: Text = ""
) -> str:
    """Use the champion before this one again, or a named version; its id.

    Args:
        model_name: Name of the model: models/NAME in the store.
        version: A version that was the champion, such as v0001. Empty: the one before this champion.
        reason: What the history is to say of it.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    folder = folder_of(store)
    used = rollback(folder, model_name, version, reason=reason)
    _show_versions(folder, model_name)
    return used.id


@form(name="promote", flow_run_name="promote {model_name} {version}", **BUTTON)
def promote_version(
    version: Annotated[str, Field(pattern=f"^{NUMBER}$")],
    model_name: ModelName = "lm",
    expected: ChosenVersion = "",
    reason: SomeText = "by hand",
    force: bool = False,
    store: Text = "",
) -> str:
    """Use a version, whatever the gate said of it if forced; its id.

    Args:
        version: The version that is to be used, such as v0002.
        model_name: Name of the model: models/NAME in the store.
        expected: The champion that it is to replace: nothing is changed if another is in use by then. Empty: there is
            none yet.
        reason: What the history is to say of it.
        force: Promote the version although the gate refused it.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    folder = folder_of(store)
    promote(folder, model_name, version, expected=expected or None, reason=reason, force=force)
    _show_versions(folder, model_name)
    return version


@form(name="push", flow_run_name="push {model_name} {version} to {repository}", **BUTTON)
def push_version(
    repository: Annotated[str, Field(pattern=f"^{NAME}/{NAME}$")],
    model_name: ModelName = "lm",
    version: ChosenVersion = "",
    store: Text = "",
) -> str:
    """Put a version into a repository of the Hugging Face hub; the address of the commit.

    Args:
        repository: Such as user/name, made private if it is not there. The token is HF_TOKEN's on the machine that
            runs this.
        model_name: Name of the model: models/NAME in the store.
        version: Such as v0001. Empty: the champion.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    folder = folder_of(store)
    commit: str = push_to_hub(find_version(folder, _named(model_name, version)), repository)
    _show_versions(folder, model_name)
    return commit


@form(name="prune", flow_run_name="prune {model_name}", **BUTTON)
def prune_versions(model_name: ModelName = "lm", keep: Count = 5, dry_run: bool = True, store: Text = "") -> list[str]:
    """Remove old versions, never the champion; which ones, or which it would be.

    Args:
        model_name: Name of the model: models/NAME in the store.
        keep: Newest versions to keep, beside the champion and what one of these began with.
        dry_run: Only say what would be removed.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    gone = prune(folder_of(store), model_name, keep, dry_run)
    done = "to be removed" if dry_run else "removed"
    rows = [{"version": version} for version in gone]
    show_table(f"pruned-{model_name}", rows, f"{done} of {model_name}: {len(gone)}")
    return gone


@form(name="versions", flow_run_name="versions of {model_name}", **BUTTON)
def versions(model_name: ModelName = "lm", store: Text = "") -> None:
    """The versions of a model, its champion and its history, as a table.

    Args:
        model_name: Name of the model: models/NAME in the store.
        store: Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store.
    """
    _show_versions(folder_of(store), model_name)


def _named(model_name: str, version: str) -> str:
    """NAME/v0001, or NAME for the champion."""
    return f"{model_name}/{version}" if version else model_name


def _show_versions(folder: Path, model_name: str) -> None:
    """Raises RegistryError for a model that is not there: an empty table would look like an answer."""
    if model_name not in (known := models(folder)):
        there = ", ".join(known) or "none"
        raise RegistryError(f"there is no model {model_name} in {folder} (there are: {there})")
    current = champion(folder, model_name)
    used = f"{model_name}: {current.id if current else 'none'} is in use"
    show_table(f"versions-{model_name}", history_rows(folder, model_name), used)


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
