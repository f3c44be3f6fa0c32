"""Actions on the versions of a model."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from lmcore.cli.command import print_json
from lmcore.cli.options import STORE, Count, DryRun, ModelName, Store, Version
from lmcore.markdown import columns

_log = logging.getLogger("lmcore")

_FIGURES = ("nats_per_token", "bits_per_byte")
_Reason = Annotated[str, Parameter(help="What the history says about it.")]


def models(model: ModelName, /, *, store: Store = STORE) -> None:
    """List the versions of a model, its champion and its history."""
    from lmcore.registry.versions import champion, history_rows, versions

    past, current = history_rows(store, model), champion(store, model)
    rows = [_row(version, version == current) for version in versions(store, model)]
    print(columns([{**row, **{name: f"{row[name]:.4f}" for name in _FIGURES}} for row in rows]))
    print(columns(past))
    print_json({"model": model, "champion": current.id if current else None, "versions": rows})


def _row(version: Any, is_champion: bool) -> dict[str, Any]:
    receipt = version.receipt()
    figures = {name: receipt["evaluation"][name] for name in _FIGURES}
    role = "champion" if is_champion else ""
    return {"version": version.id, "created": receipt["created"], "run": receipt["run"], **figures, "role": role}


def promote_version(
    version: Annotated[str, Parameter(help="NAME/v0002.")],
    /,
    *,
    expect: Annotated[
        str | None, Parameter(help="The champion that it replaces (default: the one it was compared with).")
    ] = None,
    reason: _Reason = "by hand",
    force: Annotated[bool, Parameter(help="Promote it although the gate refused it.", negative=())] = False,
    store: Store = STORE,
) -> None:
    """Make a version the champion."""
    from lmcore.registry.registry import promote
    from lmcore.registry.versions import find_version

    found = find_version(store, version)
    expected = (expect if expect is not None else found.receipt()["champion_before"]) or None
    promoted = promote(store, found.model, found.id, expected=expected, reason=reason, force=force)
    print_json({"model": promoted.model, "champion": promoted.id, "champion_before": expected})


def roll_back(
    model: ModelName,
    /,
    *,
    to: Annotated[str, Parameter(help="A version (default: the champion before this one).")] = "",
    reason: _Reason = "by hand",
    store: Store = STORE,
) -> None:
    """Use the champion before this one again."""
    from lmcore.registry.registry import rollback

    version = rollback(store, model, to, reason=reason)
    print_json({"model": version.model, "champion": version.id})


def prune_versions(
    model: ModelName,
    /,
    *,
    keep: Annotated[Count, Parameter(help="Newest versions to keep, beside the champion.")],
    dry_run: DryRun = False,
    store: Store = STORE,
) -> None:
    """Remove old versions, never the champion."""
    from lmcore.registry.registry import prune

    gone = prune(store, model, keep, dry_run)
    print_json({"model": model, "pruned": gone, "dry_run": dry_run})


def push_version(
    version: Version,
    repository: Annotated[str, Parameter(help="On the hub, such as user/name.")],
    /,
    *,
    store: Store = STORE,
) -> None:
    """Put a version into a repository of the Hugging Face hub (token: HF_TOKEN)."""
    from lmcore.registry.push import push
    from lmcore.registry.versions import find_version

    found = find_version(store, version)
    commit = push(found, repository)
    print_json({"version": str(found), "repository": repository, "commit": commit})


def diff_versions(one: Version, other: Version, /, *, store: Store = STORE) -> None:
    """Show in what two versions differ."""
    from lmcore.registry.receipt import diff, difference_rows
    from lmcore.registry.versions import find_version

    old, new = find_version(store, one), find_version(store, other)
    print(columns(difference_rows(old, new)))
    differences = {name: [before, after] for name, before, after in diff(old, new)}
    print_json({"versions": [str(old), str(new)], "differences": differences})


def verify_version(store: Path, name: str) -> None:
    """Print what no longer matches its receipt; ends with status 1 if there is anything."""
    from lmcore.registry.receipt import check_receipt, program_differences
    from lmcore.registry.versions import find_version

    version = find_version(store, name)
    found = list(check_receipt(version))
    for line in found:
        print(line)
    for line in program_differences(version.receipt()) if not found else []:
        _log.info("made by another program: %s", line)
    print_json({"version": str(version), "problems": len(found)})
    sys.exit(1 if found else 0)


def replay_version(version: Version, /, *, store: Store = STORE) -> None:
    """Train a version again and compare losses and weights."""
    from lmcore.registry.receipt import program_differences
    from lmcore.registry.versions import find_version
    from lmcore.upkeep.replay import replay

    found = find_version(store, version)
    for line in program_differences(found.receipt()):
        _log.warning("made by another program: %s", line)
    result = replay(found, _log.info)
    for line in result.differences:
        print(line)
    print_json(result.model_dump(mode="json"))
    sys.exit(1 if result.differences else 0)
