"""The inputs of the last starts, so that a message can say what has changed since.

    inputs/<task>.json          the inputs of a task's last starts, newest first
    inputs/files-<corpus>.json  the listing of a corpus: its files and their hashes

They are hints: without them a message lacks its reason, and no result changes.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter

from lmcore import clock
from lmcore.errors import LMError
from lmcore.settings.section import differences
from lmcore.store.files import write_file
from lmcore.store.json_files import json_bytes, to_json

Inputs = dict[str, Any]
"""Nested JSON values by name. ``store`` is the store's folder, ``corpus`` the id of a corpus."""

_KEPT = 20
"""Starts of a task and corpora that are kept, since runs of different models and texts alternate."""
_SHOWN = 3
_LONGEST = 60
"""Characters of a value."""
_HASH = re.compile("(.+-)?[0-9a-f]{16,}")
"""A content hash, or the name of a run, which ends with one."""


class _Start(BaseModel):
    time: str
    inputs: Inputs


_STARTS: TypeAdapter[list[_Start]] = TypeAdapter(list[_Start])
_LISTING: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def remember(task: str, inputs: Inputs) -> None:
    """Keep the inputs of a start, before its result is made."""
    path = _folder(inputs) / f"{task}.json"
    with suppress(OSError, LMError):
        earlier = [start.model_dump() for start in _read(path, _STARTS) or () if start.inputs != inputs]
        _keep(path, [{"time": f"{clock.utc():%Y-%m-%d %H:%M} UTC", "inputs": inputs}, *earlier][:_KEPT])


def remember_files(store: Path, corpus_id: str, listing: dict[str, Any]) -> None:
    """Keep the listing of a corpus: JSON values, with ``files`` and ``validation_files`` by path."""
    folder = store / "inputs"
    with suppress(OSError, LMError):
        if remembered_files(store, corpus_id) == listing:
            return
        _keep(folder / f"files-{corpus_id}.json", listing)
        listed = sorted(folder.glob("files-*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for old in listed[_KEPT:]:
            old.unlink(missing_ok=True)


def remembered_files(store: Path, corpus_id: str) -> dict[str, Any] | None:
    """The listing that ``remember_files`` kept last for the id; None if there is none or it is damaged."""
    listing: dict[str, Any] | None = _read(store / "inputs" / f"files-{corpus_id}.json", _LISTING)
    return listing


def what_changed(task: str, inputs: Inputs) -> str:
    """How these inputs differ from those of the most similar of the last starts, in words."""
    folder = _folder(inputs)
    try:
        starts = _read(folder / f"{task}.json", _STARTS)
    except OSError as error:
        return f"the record of its last starts cannot be read ({error})"
    if not starts:
        return "nothing of its kind is in this store yet"
    nearest = min(starts, key=lambda start: len(list(differences(start.inputs, inputs))))
    changed = {name: (was, now) for name, was, now in differences(nearest.inputs, inputs)}
    if "corpus" in changed:
        changed.pop("corpus.listing", None)  # it follows from the corpus
    found = [_in_words(folder.parent, name, *values) for name, values in changed.items()]
    if not found:
        return f"no result is recorded of its last start with the same inputs ({nearest.time})"
    rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(found[:_SHOWN])}{rest} (last started {nearest.time})"


def _in_words(store: Path, name: str, was: Any, now: Any) -> str:
    if name == "corpus" and was and now:
        return _files_in_words(_files(store, was), _files(store, now))
    if all(isinstance(value, str) and _HASH.fullmatch(value) for value in (was, now)):
        return f"{name} changed"
    return f"{name} is {_shown(now)}, was {_shown(was)}"


def _files_in_words(before: dict[str, Any], after: dict[str, Any]) -> str:
    if not before or not after:
        return "the corpus changed"
    kept = before.keys() & after.keys()
    counts = {
        "new": len(after.keys() - kept),
        "changed": sum(before[path] != after[path] for path in kept),
        "gone": len(before.keys() - kept),
    }
    files = ", ".join(f"{count:,} {what}" for what, count in counts.items() if count)
    return f"the corpus changed: files {files}" if files else "the corpus is read or split in another way"


def _files(store: Path, corpus_id: str) -> dict[str, Any]:
    """What is known of each file of a corpus by path; empty if there is no listing."""
    listing = remembered_files(store, corpus_id) or {}
    return {**listing.get("files", {}), **listing.get("validation_files", {})}


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) and value else to_json(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _folder(inputs: Inputs) -> Path:
    return Path(inputs["store"]) / "inputs"


def _read(path: Path, kind: TypeAdapter[Any]) -> Any:
    """The content of a file; None if it is missing or damaged. Raises OSError when it cannot be read."""
    try:
        return kind.validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def _keep(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_file(path, json_bytes(content))
