"""Changes of a model: a version is added, promoted, rolled back to, pushed or pruned, each under the model's lock.

A change is recorded in the history. A killed process may leave a version without its event, or a pruned version that
is not removed yet: the next change completes both. No torch.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcore.errors import RegistryError, no_space_named
from lmcore.registry.history import champion_event, champion_id, complete, earlier_champions, read_history, record
from lmcore.registry.versions import Version, champion, find_version, model_folder, require_model, versions
from lmcore.settings.section import NUMBER
from lmcore.store.artifacts import read_manifest
from lmcore.store.locks import locked
from lmcore.store.temporary import remove, remove_stale_temp


def promote(
    store: Path,
    name: str,
    version: str,
    *,
    expected: str | None,
    reason: str,
    decision: dict[str, Any] | None = None,
    force: bool = False,
    **about: Any,
) -> Version:
    """Make a version the champion, if the champion still is ``expected`` (None: there is none yet).

    ``decision`` is the gate's, by default that in the version's receipt; ``about`` is more for the history. Raises
    RegistryError when another promotion was first, and names it; also for a version that the gate refused, unless
    ``force`` is set.
    """
    with _changing(store, name) as folder:
        challenger = find_version(store, f"{name}/{version}")
        read_manifest(challenger.folder)
        if champion_id(folder) == challenger.id != expected:
            raise RegistryError(f"{challenger} already is the champion")
        decision = decision if decision is not None else challenger.receipt().get("decision", {})
        if not decision.get("promoted") and not force:
            reasons = "; ".join(decision.get("reasons", [])) or "there is no decision about it"
            raise RegistryError(f"{challenger} was not found better: {reasons}. --force promotes it all the same")
        _require_champion(folder, expected, challenger)
        record(folder, "promoted", challenger.id, reason, decision, **about)
        return challenger


def rollback(store: Path, name: str, to: str = "", *, reason: str) -> Version:
    """Make an older version the champion again: ``to``, or the champion before this one.

    Raises RegistryError when none of them is kept.
    """
    with _changing(store, name) as folder:
        kept = [version for version in earlier_champions(folder) if (folder / version).is_dir()]
        if not to and not kept:
            others = ", ".join(each.id for each in versions(store, name) if each.id != champion_id(folder)) or "none"
            raise RegistryError(
                f"model {name} has no earlier champion to go back to: name a version (there are: {others})"
            )
        version = find_version(store, f"{name}/{to or kept[-1]}")
        read_manifest(version.folder)
        record(folder, "rolled back", version.id, reason, None)
        return version


def record_refusal(
    store: Path, name: str, reason: str, decision: dict[str, Any], version: str | None = None, **about: Any
) -> None:
    """Record that a challenger was refused; ``about`` says what it was (its run, dataset, identity)."""
    with _changing(store, name, creates=True) as folder:
        record(folder, "refused", version, reason, decision, **about)


def record_push(store: Path, name: str, version: str, repository: str, commit: str) -> None:
    """Record that a version was put into a repository of a hub, by that commit."""
    with _changing(store, name) as folder:
        record(folder, "pushed", version, f"{repository}: {commit}", None, repository=repository)


def prune(store: Path, name: str, keep: int, dry_run: bool = False) -> list[str]:
    """Remove all versions but the newest ``keep``, the champion, and those that one of these was trained from."""
    with _changing(store, name) as folder:
        everything = versions(store, name)
        current = champion(store, name)
        kept = {version.id for version in everything[max(0, len(everything) - keep) :]}
        kept |= {current.id} if current else set()
        kept |= {origin for version in everything if version.id in kept if (origin := _origin(version))}
        doomed = [version for version in everything if version.id not in kept]
        for version in [] if dry_run else doomed:
            record(folder, "pruned", version.id, f"keep {keep}", None)
            remove(version.folder)
        return [version.id for version in doomed]


def _origin(version: Version) -> str:
    """The version of the same model whose weights this one began with, or none."""
    path = (version.receipt().get("origin") or {}).get("path", "")
    found = re.fullmatch(f"models/{re.escape(version.model)}/({NUMBER})", path)
    return found[1] if found else ""


@contextmanager
def adding(store: Path, name: str) -> Iterator[Version]:
    """The next version, whose folder the body makes; then it is recorded. No number is given twice."""
    with _changing(store, name, creates=True) as folder:
        numbers = [version.number for version in versions(store, name)]
        numbers += [int(event["version"][1:]) for event in read_history(folder) if event["version"]]
        number = f"v{max(numbers, default=0) + 1:04d}"
        yield Version(name, number, folder / number)
        _complete(folder)


@contextmanager
def _changing(store: Path, name: str, creates: bool = False) -> Iterator[Path]:
    """Hold the model's lock, and complete what a killed process left."""
    folder = model_folder(store, name)
    if not creates:
        require_model(folder)
    with locked(folder / "lock", "wait", what=f"model {name}"), no_space_named(folder):
        remove_stale_temp(folder)
        complete(folder)
        _complete(folder)
        yield folder


def _complete(folder: Path) -> None:
    """Record versions that have no event, and remove those that were pruned."""
    events = read_history(folder)
    added, pruned = ({event["version"] for event in events if event["event"] == kind} for kind in ("added", "pruned"))
    for version in versions(folder.parents[1], folder.name):
        if version.id in pruned:
            remove(version.folder)
        elif version.id not in added:
            receipt = version.receipt()
            about = {"time": receipt["created"], "from": receipt.get("champion_before")}
            record(folder, "added", version.id, "", receipt.get("decision"), **about)


def _require_champion(folder: Path, expected: str | None, challenger: Version) -> None:
    current = champion_id(folder)
    if current != expected:
        event = champion_event(folder)
        raise RegistryError(
            f"champion of {folder.name}: expected was {expected or 'none'}, found is {current or 'none'}"
            + (f", {event['event']} at {event['time']} ({event['reason']})" if event else "")
            + f". Compare {challenger.id} with it before you promote"
        )
