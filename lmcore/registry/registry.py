"""The models of a store: numbered versions, the champion among them, and the history of both.

    models/<name>/  v0001/ v0002/ ...  champion.json  history.jsonl  lock

A version is a sealed folder that transformers opens (version.py makes it). champion.json is replaced by a rename, so
a reader sees the old champion or the new; it holds the whole event that made it. history.jsonl has a line an
event and is only appended to, after what it tells of has happened. So whatever a kill leaves undone can be told
from the folder, and every command that changes something first mends that. Changes are made under one lock a model.

Nothing here needs torch.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lmcore import clock
from lmcore.corpus.exclusions import current_dataset_id
from lmcore.errors import RegistryError, no_space_named, owner_named
from lmcore.settings.section import NAME
from lmcore.store.allowed_paths import check_allowed
from lmcore.store.artifacts import check_version, read_manifest
from lmcore.store.files import json_bytes, write_file
from lmcore.store.json_lines import append_line, read_lines
from lmcore.store.locks import locked
from lmcore.store.strict_json import from_json
from lmcore.store.temporary import remove, remove_stale_temp

Event = dict[str, Any]
"""time (UTC), event, version, from (the champion before), reason, decision."""

RECEIPT = "receipt.json"
_CHAMPION = "champion.json"
_HISTORY = "history.jsonl"
NUMBER = "v[0-9]{4,9}"
"""A pattern of the ids of versions."""
_CHANGES_CHAMPION = ("promoted", "rolled back")


@dataclass(frozen=True)
class Version:
    """A version of a model; ``id`` is like v0001."""

    model: str
    id: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.model}/{self.id}"

    @property
    def number(self) -> int:
        return int(self.id[1:])

    @property
    def store(self) -> Path:
        return self.folder.parents[2]

    @property
    def dataset(self) -> Path:
        """The folder of the dataset it was trained on, without what was forgotten since. Raises as ``receipt`` does."""
        return self.store / "datasets" / current_dataset_id(self.store, str(self.receipt()["dataset"]["id"]))

    def receipt(self) -> dict[str, Any]:
        """What the version was made from. Raises RegistryError when it is missing or damaged."""
        path = self.folder / RECEIPT
        try:
            with owner_named(path):
                content: dict[str, Any] = from_json(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            raise RegistryError(
                f"{path} is missing or damaged: {error}. python -m lmcore verify {self} says more"
            ) from None
        check_version(content, path)
        return content


def model_folder(store: Path, name: str) -> Path:
    """Where a model's versions are, or will be.

    Raises RegistryError for a name that would lead elsewhere, and ConfigError when it is outside LM_DATA_ROOTS.
    """
    if not re.fullmatch(NAME, name):
        raise RegistryError(f"{name!r} cannot name a model: letters, digits, . _ and - (no / and no . in front)")
    folder = store.absolute() / "models" / name
    check_allowed(folder, "store")
    return folder


def models(store: Path) -> list[str]:
    """The names of all models."""
    return sorted(path.name for path in (store / "models").glob("*") if re.fullmatch(NAME, path.name))


def versions(store: Path, name: str) -> list[Version]:
    """All versions of a model, oldest first."""
    folder = model_folder(store, name)
    found = [Version(name, path.name, path) for path in folder.glob("v*") if re.fullmatch(NUMBER, path.name)]
    return sorted(found, key=lambda version: version.number)


def find_version(store: Path, name: str) -> Version:
    """NAME/v0001, or the champion of NAME. Raises RegistryError when there is no such version."""
    model, _, number = name.partition("/")
    if not number:
        if (found := champion(store, model)) is None:
            raise RegistryError(f"model {model} has no champion in {store / 'models'}: name a version, {model}/v0001")
        return found
    if not re.fullmatch(NUMBER, number):
        raise RegistryError(f"{number!r} is no version: they are called v0001, v0002, ...")
    version = Version(model, number, model_folder(store, model) / number)
    if not version.folder.is_dir():
        known = ", ".join(each.id for each in versions(store, model)) or "none"
        raise RegistryError(f"model {model} has no version {number} in {store / 'models'} (there are: {known})")
    return version


def champion(store: Path, name: str) -> Version | None:
    """The version in use, or None before the first promotion.

    Raises RegistryError when champion.json is damaged, speaks of a version that is gone, or is itself gone although the
    history tells of a champion: else a model that nobody compared with it would take its place as the first.
    """
    folder = model_folder(store, name)
    event = _champion_event(folder)
    return find_version(store, f"{name}/{event['version']}") if event else None


def history(store: Path, name: str) -> list[Event]:
    """Every event of a model, oldest first; a last line that a kill cut off is left out."""
    folder = model_folder(store, name)
    events = _events(folder)
    missing = [event for event in [_champion_event(folder)] if event and event not in events]
    return events + missing


def history_rows(store: Path, name: str) -> list[dict[str, str]]:
    """A model's history as a table, the newest first. Raises RegistryError when there is no such model."""
    _require_model(model_folder(store, name))
    return [
        {
            "time": f"{datetime.fromisoformat(event['time']):%Y-%m-%d %H:%M} UTC",
            **{column: str(event[column] or "") for column in ("event", "version", "reason")},
        }
        for event in reversed(history(store, name))
    ]


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
    RegistryError when another promotion was first, and says whose; also for a version that the gate refused, unless
    ``force`` is set.
    """
    with _changing(store, name) as folder:
        challenger = find_version(store, f"{name}/{version}")
        read_manifest(challenger.folder)
        decision = decision if decision is not None else challenger.receipt().get("decision", {})
        if not decision.get("promoted") and not force:
            reasons = "; ".join(decision.get("reasons", [])) or "there is no decision about it"
            raise RegistryError(f"{challenger} was not found better: {reasons}. --force promotes it all the same")
        _move_champion(folder, "promoted", challenger.id, expected, reason, decision, **about)
        return challenger


def rollback(store: Path, name: str, to: str = "", *, reason: str) -> Version:
    """Make an older version the champion again: ``to``, or the champion before this one.

    Raises RegistryError when there is none that is still kept.
    """
    with _changing(store, name) as folder:
        current = champion(store, name)
        earlier = _champions_before(_events(folder))
        kept = [version for version in earlier if (folder / version).is_dir()]
        if not to and not kept:
            raise RegistryError(f"model {name} has no earlier champion to go back to: name a version, such as v0001")
        version = find_version(store, f"{name}/{to or kept[-1]}")
        read_manifest(version.folder)
        _move_champion(folder, "rolled back", version.id, current.id if current else None, reason, None)
        return version


def record_refusal(store: Path, name: str, reason: str, decision: dict[str, Any], **about: Any) -> None:
    """Write into the history that a challenger was refused; ``about`` says what it was (its run, dataset, identity)."""
    with _changing(store, name, creates=True) as folder:
        before = _champion_event(folder)
        event = _event("refused", None, before["version"] if before else None, reason, decision)
        _append(folder, {**event, **about})


def record_push(store: Path, name: str, version: str, repository: str, commit: str) -> None:
    """Write into the history that a version was put into a repository of a hub, by that commit."""
    with _changing(store, name) as folder:
        before = _champion_event(folder)
        event = _event("pushed", version, before["version"] if before else None, f"{repository}: {commit}", None)
        _append(folder, {**event, "repository": repository})


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
            _append(folder, _event("pruned", version.id, current.id if current else None, f"keep {keep}", None))
            remove(version.folder)
        return [version.id for version in doomed]


def _origin(version: Version) -> str:
    """The version of the same model whose weights this one began with, or none."""
    path = (version.receipt().get("origin") or {}).get("path", "")
    found = re.fullmatch(f"models/{re.escape(version.model)}/({NUMBER})", path)
    return found[1] if found else ""


@contextmanager
def adding(store: Path, name: str) -> Iterator[Version]:
    """The next version, for the body to make its folder; the history then tells of it. No number is given twice."""
    with _changing(store, name, creates=True) as folder:
        numbers = [version.number for version in versions(store, name)]
        numbers += [int(event["version"][1:]) for event in _events(folder) if event["version"]]
        number = f"v{max(numbers, default=0) + 1:04d}"
        yield Version(name, number, folder / number)
        _mend(folder)


# --- one change at a time, each whole or mended ---


@contextmanager
def _changing(store: Path, name: str, creates: bool = False) -> Iterator[Path]:
    """Hold the model's lock, and mend what a killed process left."""
    folder = model_folder(store, name)
    if not creates:
        _require_model(folder)
    with locked(folder / "lock", "wait", what=f"model {name}"), no_space_named(folder):
        remove_stale_temp(folder)
        _mend(folder)
        yield folder


def _require_model(folder: Path) -> None:
    if not folder.is_dir():
        known = ", ".join(models(folder.parents[1])) or "none"
        raise RegistryError(f"there is no model {folder.name} in {folder.parent} (there are: {known})")


def _mend(folder: Path) -> None:
    """Complete the history and end what it says was begun."""
    events = _events(folder)
    told = {event["version"] for event in events if event["event"] == "added"}
    for version in versions(folder.parents[1], folder.name):
        if version.id not in told:
            receipt = version.receipt()
            before = receipt.get("champion_before")
            added = _event("added", version.id, before, "", receipt.get("decision"))
            _append(folder, {**added, "time": receipt["created"]})
    last = _champion_event(folder)
    if last and last not in events:
        _append(folder, last)
    for event in events:
        if event["event"] == "pruned" and (folder / event["version"]).is_dir():
            remove(folder / event["version"])


def _move_champion(
    folder: Path,
    kind: str,
    version: str,
    expected: str | None,
    reason: str,
    decision: dict[str, Any] | None,
    **about: Any,
) -> None:
    event = _champion_event(folder)
    current = event["version"] if event else None
    if current != expected:
        raise RegistryError(
            f"champion of {folder.name}: expected was {expected or 'none'}, found is {current or 'none'}"
            + (f", {event['event']} at {event['time']} ({event['reason']})" if event else "")
            + f". Compare {version} with it before you promote"
        )
    moved = _event(kind, version, current, reason, decision) | about
    write_file(folder / _CHAMPION, json_bytes(moved))
    _append(folder, moved)


def _champions_before(events: list[Event]) -> list[str]:
    """The champions that led to this one, oldest first, without it. Going back forgets those in between."""
    line: list[str] = []
    for event in events:
        if event["event"] == "rolled back" and event["version"] in line:
            del line[line.index(event["version"]) :]
        if event["event"] in _CHANGES_CHAMPION:
            line.append(event["version"])
    return line[:-1]


def _event(kind: str, version: str | None, before: str | None, reason: str, decision: dict[str, Any] | None) -> Event:
    told: Event = {"time": clock.stamp(), "event": kind, "version": version, "from": before}
    return told | {"reason": reason, "decision": decision}


def _champion_event(folder: Path) -> Event | None:
    path = folder / _CHAMPION
    try:
        with owner_named(path):
            event: Event = from_json(path.read_bytes())
        event["version"], event["event"], event["time"]
    except FileNotFoundError as error:
        had_one = any(event["event"] in _CHANGES_CHAMPION for event in _events(folder))
        if had_one and not path.exists():  # else the first promotion has just come between the two looks
            raise _damaged(path, error) from None
        return None
    except (ValueError, LookupError, TypeError) as error:
        raise _damaged(path, error) from None
    return event


def _damaged(champion_file: Path, error: Exception) -> RegistryError:
    return RegistryError(
        f"{champion_file} is missing or damaged ({error!r}): "
        f"copy the last promoted or rolled back line of {_HISTORY} into it"
    )


def _events(folder: Path) -> list[Event]:
    return read_lines(folder / _HISTORY)


def _append(folder: Path, event: Event) -> None:
    append_line(folder / _HISTORY, event)
