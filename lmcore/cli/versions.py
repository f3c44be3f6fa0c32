"""Actions on the versions of a model."""

import logging
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from lmcore.cli.options import (
    Count,
    DryRun,
    IdField,
    InForm,
    ModelName,
    Reason,
    Store,
    VersionField,
    store_folder,
    version_name,
)
from lmcore.cli.options import Version as VersionName
from lmcore.cli.outcome import Outcome
from lmcore.clock import for_people
from lmcore.errors import StoreError
from lmcore.registry import versions as stored
from lmcore.settings.section import NAME, NUMBER

_log = logging.getLogger("lmcore")
_FIGURES = ("nats_per_token", "bits_per_byte")


def models(model_name: ModelName = "", /, *, store: Store = "") -> Outcome:
    """List the versions of a model, its champion and its history; without a name, all models."""
    folder = store_folder(store)
    if not model_name:
        return _all_models(folder)
    stored.require_model(stored.model_folder(folder, model_name))
    current = stored.champion(folder, model_name)
    rows = [_row(version, version == current) for version in stored.versions(folder, model_name)]
    data = {"model": model_name, "champion": current.id if current else None, "versions": rows}
    figures = [{name: f"{row[name]:.4f}" for name in _FIGURES} for row in rows]
    shown = [{**row, "created": for_people(row["created"]), **found} for row, found in zip(rows, figures, strict=True)]
    return _with_history(folder, model_name, data, {f"figures-{model_name}": shown})


def _all_models(folder: Path) -> Outcome:
    rows: list[dict[str, Any]] = []
    for name in stored.models(folder):
        best = stored.champion(folder, name)
        rows.append(
            {"model": name, "champion": best.id if best else "", "versions": len(stored.versions(folder, name))}
        )
    shown = [{name: str(value) for name, value in row.items()} for row in rows]
    count = f"{len(rows)} model{'' if len(rows) == 1 else 's'} in {folder}"
    return Outcome({"models": rows}, count if folder.is_dir() else f"there is no store in {folder}", {"models": shown})


def _row(version: stored.Version, is_champion: bool) -> dict[str, Any]:
    receipt = version.receipt()
    figures = {name: receipt["evaluation"][name] for name in _FIGURES}
    role = "champion" if is_champion else ""
    return {"version": version.id, "created": receipt["created"], "run": receipt["run"], **figures, "role": role}


def _with_history(folder: Path, model_name: str, data: dict[str, Any], tables: Any = None) -> Outcome:
    """An outcome that also shows the model's history and which version is in use."""
    current = stored.champion(folder, model_name)
    sentence = f"{model_name}: {current.id if current else 'none'} is in use"
    history = {f"versions-{model_name}": stored.history_rows(folder, model_name)}
    return Outcome(data, sentence, (tables or {}) | history)


def promote(
    version: Annotated[
        str,
        Parameter(help="Such as v0002 or NAME/v0002."),
        InForm(annotation=Annotated[str, Field(pattern=f"^({NAME}/)?{NUMBER}$")]),
    ],
    /,
    *,
    model_name: ModelName = "lm",
    expected: Annotated[str | None, Parameter(name="--expect"), InForm("", IdField)] = None,
    reason: Reason = "by hand",
    force: Annotated[bool, Parameter(negative=())] = False,
    reference: Annotated[bool, Parameter(negative=())] = False,
    store: Store = "",
) -> Outcome:
    """Make a version the champion.

    Args:
        expected: The champion that it replaces; if another is in use by then, nothing changes. Empty: there is none
            yet. Not given on a command line: the one it was compared with.
        force: Promote it although the gate refused it.
        reference: Measure later challengers against this version on all held-out text, instead of against the best
            version before it. The way out when everything is refused by gate.total_margin.
    """
    from lmcore.registry import registry

    folder = store_folder(store)
    found = stored.find_version(folder, version_name(model_name, version))
    before = (found.receipt()["champion_before"] if expected is None else expected) or None
    done = registry.promote(
        folder, found.model, found.id, expected=before, reason=reason, force=force, reference=reference
    )
    data = {"model": done.model, "champion": done.id, "champion_before": before}
    return _with_history(folder, done.model, data)


def rollback(
    model_name: ModelName,
    /,
    *,
    version: Annotated[str, Parameter(name="--to"), InForm("", IdField)] = "",
    reason: Reason = "by hand",
    store: Store = "",
) -> Outcome:
    """Use the champion before this one again, or a named version.

    Args:
        version: A version that was the champion, such as v0001. Empty: the champion before this one.
    """
    from lmcore.registry import registry

    folder, (model_name, _, named) = store_folder(store), model_name.partition("/")
    used = registry.rollback(folder, model_name, version or named, reason=reason)
    return _with_history(folder, model_name, {"model": used.model, "champion": used.id})


def prune(
    model_name: ModelName, /, *, keep: Annotated[Count, InForm(5)], dry_run: DryRun = False, store: Store = ""
) -> Outcome:
    """Remove old versions, never the champion.

    Args:
        keep: Newest versions to keep, beside the champion and those that one of these was trained from.
    """
    from lmcore.registry import registry

    gone = registry.prune(store_folder(store), model_name, keep, dry_run)
    sentence = f"{'to be removed' if dry_run else 'removed'} of {model_name}: {len(gone)}"
    data = {"model": model_name, "pruned": gone, "dry_run": dry_run}
    return Outcome(data, sentence, {f"pruned-{model_name}": [{"version": version} for version in gone]})


def push(
    version: VersionName,
    repository: Annotated[str, InForm(annotation=Annotated[str, Field(pattern=f"^{NAME}/{NAME}$")])],
    /,
    *,
    model_name: ModelName = "lm",
    store: Store = "",
) -> Outcome:
    """Put a version into a repository of the Hugging Face hub.

    Args:
        repository: Such as user/name; made private if it is not there. The token is that of HF_TOKEN on the machine
            that runs this.
    """
    from lmcore.registry.push import push as push_version

    folder = store_folder(store)
    found = stored.find_version(folder, version_name(model_name, version))
    data = {"version": str(found), "repository": repository, "commit": push_version(found, repository)}
    return _with_history(folder, found.model, data)


def diff(version: VersionName, other: VersionName, /, *, model_name: ModelName = "lm", store: Store = "") -> Outcome:
    """Show how two versions differ: settings, text, figures."""
    from lmcore.registry import receipt

    folder = store_folder(store)
    old, new = (stored.find_version(folder, version_name(model_name, each)) for each in (version, other))
    found = {name: [before, after] for name, before, after in receipt.diff(old, new)}
    rows = [{"field": name, "one": str(before), "other": str(after)} for name, (before, after) in found.items()]
    data = {"versions": [str(old), str(new)], "differences": found}
    return Outcome(data, f"{old} and {new}", {f"diff-{old.model}": rows})


def verify(
    version: Annotated[
        str,
        Parameter(help="Such as v0001, NAME/v0001, or NAME for its champion; on a command line also a dataset's id."),
        InForm("", VersionField),
    ],
    /,
    *,
    model_name: ModelName = "lm",
    store: Store = "",
) -> Outcome:
    """Read a version and all that it was made from again, or a dataset, and compare; failed if anything is wrong."""
    folder, name = store_folder(store), version_name(model_name, version)
    if not version or name.partition("/")[0] in stored.models(folder):
        return _verify_version(stored.find_version(folder, name))
    return _verify_dataset(stored.find(folder, name, "dataset", "folder", "version"))


def _verify_version(version: stored.Version) -> Outcome:
    from lmcore.registry.receipt import program_differences
    from lmcore.upkeep.verify import check_receipt

    lines = list(check_receipt(version))
    wrong = f"{version} no longer matches its receipt ({len(lines)}): {lines[0]}" if lines else ""
    return Outcome(
        {"version": str(version), "problems": len(lines)},
        wrong or f"{version}: all matches",
        {f"verify-{version.model}": [{"no longer matches": line} for line in lines]},
        [] if wrong else [f"made by another program: {line}" for line in program_differences(version.receipt())],
        ok=not wrong,
    )


def _verify_dataset(dataset: Path) -> Outcome:
    from lmcore.dataset.audit import problems

    if dataset.parent.name != "datasets":
        raise StoreError(f"{dataset} is not a dataset of a store: give the id of a dataset, or a version of a model")
    found = [f"{chunk or 'manifest'}: {problem}" for chunk, problem in problems(dataset)]
    sentence = f"dataset {dataset.name}: {f'{len(found)} problems' if found else 'all matches'}"
    return Outcome({"dataset_id": dataset.name, "problems": len(found)}, sentence, text="\n".join(found), ok=not found)


def replay(
    version: Annotated[str, Parameter(help="Such as NAME/v0001. NAME: the champion.")], /, *, store: Store = ""
) -> Outcome:
    """Train a version again and compare losses and weights."""
    from lmcore.registry.receipt import program_differences
    from lmcore.upkeep.replay import replay as train_again

    found = stored.find_version(store_folder(store), version)
    for line in program_differences(found.receipt()):
        _log.warning("made by another program: %s", line)
    result = train_again(found, _log.info)
    return Outcome(result.model_dump(mode="json"), text="\n".join(result.differences), ok=not result.differences)
