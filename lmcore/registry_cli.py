"""The verbs of python -m lmcore that are about the models of a store: their flags, and what they print."""

import logging
import sys
from pathlib import Path
from typing import Any

from lmcore.cli import count, verb_parser
from lmcore.markdown import columns
from lmcore.plain_json import to_json
from lmcore.registry import Version, champion, find_version, history_rows, promote, prune, rollback, versions

_log = logging.getLogger("lmcore")

_FIGURES = ("nats_per_token", "bits_per_byte")


def _print(**result: Any) -> None:
    print(to_json(result))


def models(arguments: list[str]) -> None:
    options = verb_parser("models", model="the model's name").parse_args(arguments)
    past, current = history_rows(options.store, options.model), champion(options.store, options.model)
    rows = [_row(version, version == current) for version in versions(options.store, options.model)]
    print(columns([{**row, **{name: f"{row[name]:.4f}" for name in _FIGURES}} for row in rows]))
    print(columns(past))
    _print(model=options.model, champion=current.id if current else None, versions=rows)


def _row(version: Version, is_champion: bool) -> dict[str, Any]:
    receipt = version.receipt()
    figures = {name: receipt["evaluation"][name] for name in _FIGURES}
    role = "champion" if is_champion else ""
    return {"version": version.id, "created": receipt["created"], "run": receipt["run"], **figures, "role": role}


def promote_version(arguments: list[str]) -> None:
    parser = verb_parser("promote", version="NAME/v0002")
    parser.add_argument("--expect", help="the champion it is to replace (default: the one it was compared with)")
    parser.add_argument("--reason", default="by hand")
    parser.add_argument("--force", action="store_true", help="although the gate refused it")
    options = parser.parse_args(arguments)
    version = find_version(options.store, options.version)
    expected = options.expect if options.expect is not None else version.receipt()["champion_before"]
    promoted = promote(
        options.store,
        version.model,
        version.id,
        expected=expected or None,
        reason=options.reason,
        force=options.force,
    )
    _print(model=promoted.model, champion=promoted.id, champion_before=expected or None)


def roll_back(arguments: list[str]) -> None:
    parser = verb_parser("rollback", model="the model's name")
    parser.add_argument("--to", default="", help="a version (default: the champion before this one)")
    parser.add_argument("--reason", default="by hand")
    options = parser.parse_args(arguments)
    version = rollback(options.store, options.model, options.to, reason=options.reason)
    _print(model=version.model, champion=version.id)


def prune_versions(arguments: list[str]) -> None:
    parser = verb_parser("prune", model="the model's name")
    parser.add_argument("--keep", type=count, required=True, help="newest versions to keep, beside the champion")
    parser.add_argument("--dry-run", action="store_true", help="only say what would go")
    options = parser.parse_args(arguments)
    gone = prune(options.store, options.model, options.keep, options.dry_run)
    _print(model=options.model, pruned=gone, dry_run=options.dry_run)


def push_version(arguments: list[str]) -> None:
    parser = verb_parser(
        "push", version="NAME/v0001, or NAME for the champion", repository="on the hub, such as user/name"
    )
    options = parser.parse_args(arguments)
    from lmcore.push import push

    version = find_version(options.store, options.version)
    commit = push(version, options.repository)
    _print(version=str(version), repository=options.repository, commit=commit)


def diff_versions(arguments: list[str]) -> None:
    options = verb_parser("diff", one="NAME/v0001, or NAME for the champion", other="likewise").parse_args(arguments)
    from lmcore.receipt import diff, difference_rows

    one, other = (find_version(options.store, name) for name in (options.one, options.other))
    print(columns(difference_rows(one, other)))
    _print(versions=[str(one), str(other)], differences={name: [old, new] for name, old, new in diff(one, other)})


def verify_version(store: Path, name: str) -> None:
    """Print what no longer matches its receipt; ends with status 1 if there is anything."""
    from lmcore.receipt import check_receipt, program_differences

    version = find_version(store, name)
    found = list(check_receipt(version))
    for line in found:
        print(line)
    for line in program_differences(version.receipt()) if not found else []:
        _log.info("made by another program: %s", line)
    _print(version=str(version), problems=len(found))
    sys.exit(1 if found else 0)


def replay_version(arguments: list[str]) -> None:
    options = verb_parser("replay", version="NAME/v0001, or NAME for the champion").parse_args(arguments)
    from lmcore.receipt import program_differences
    from lmcore.replay import replay

    version = find_version(options.store, options.version)
    for line in program_differences(version.receipt()):
        _log.warning("made by another program: %s", line)
    result = replay(version, _log.info)
    for line in result.differences:
        print(line)
    print(to_json(result.model_dump(mode="json")))
    sys.exit(1 if result.differences else 0)
