"""The inputs of the last starts, so that a message can say what has changed since.

    inputs/<task>.json          the inputs of a task's last starts, newest first
    inputs/files-<corpus>.json  the listing of a corpus: its files and their hashes

They are hints: without them a message lacks its reason, and no result changes.
"""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lmcore import clock
from lmcore.errors import LMError
from lmcore.settings.section import differences
from lmcore.store.files import json_bytes, write_file
from lmcore.store.strict_json import from_json, to_json

Inputs = dict[str, Any]
"""Nested JSON values by name. ``store`` is the store's folder, ``corpus`` the id of a corpus."""

_KEPT = 20
"""Starts of a task and corpora that are kept, since runs of different models and texts alternate."""
_SHOWN = 3
_LONGEST = 60
"""Characters of a value."""
_HASH = re.compile("(.+-)?[0-9a-f]{16,}")
"""Of content, and at the end of the name of a run."""
_log = logging.getLogger(__name__)


def remember(task: str, inputs: Inputs) -> None:
    """Keep the inputs of a start, before its result is made."""
    entry = {"time": f"{clock.utc():%Y-%m-%d %H:%M} UTC", "inputs": inputs}
    path = _folder(inputs) / f"{task}.json"
    with _or_not():
        earlier = [other for other in _history(path) if other["inputs"] != inputs]
        _keep(path, [entry, *earlier][:_KEPT])


def remember_files(store: Path, corpus_id: str, listing: dict[str, Any]) -> None:
    """Keep the listing of a corpus: JSON values, with ``files`` and ``validation_files`` by path."""
    folder = _folder({"store": store})
    with _or_not():
        if remembered_files(store, corpus_id) == listing:
            return
        _keep(_listing_path(folder, corpus_id), listing)
        listed = sorted(folder.glob("files-*.json"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for old in listed[_KEPT:]:
            old.unlink(missing_ok=True)


def remembered_files(store: Path, corpus_id: str) -> dict[str, Any] | None:
    """The listing that ``remember_files`` kept last for the id; None if there is none or it is damaged."""
    content: dict[str, Any] | None = _read(_listing_path(_folder({"store": store}), corpus_id), dict)
    return content


def what_changed(task: str, inputs: Inputs) -> str:
    """How these inputs differ from those of the most similar of the last starts, in words."""
    folder = _folder(inputs)
    try:
        history = _history(folder / f"{task}.json")
    except OSError as error:
        return f"the record of its last starts cannot be read ({error})"
    if not history:
        return "nothing of its kind is in this store yet"
    nearest = min(history, key=lambda entry: len(list(differences(entry["inputs"], inputs))))
    changed = {name: (was, now) for name, was, now in differences(nearest["inputs"], inputs)}
    if "corpus" in changed:
        changed.pop("corpus.listing", None)  # the same once more
    found = [_in_words(folder, name, *values) for name, values in changed.items()]
    if not found:
        return f"no result is recorded of its last start with the same inputs ({nearest['time']})"
    rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"{', '.join(found[:_SHOWN])}{rest} (last started {nearest['time']})"


def _in_words(folder: Path, name: str, was: Any, now: Any) -> str:
    if all(isinstance(value, str) and _HASH.fullmatch(value) for value in (was, now)) and name != "corpus":
        return f"{name} changed"
    if name != "corpus" or was is None or now is None:
        return f"{name} is {_shown(now)}, was {_shown(was)}"
    before, after = _files(folder, was), _files(folder, now)
    kept = before.keys() & after.keys()
    counts = {
        "new": len(after.keys() - kept),
        "changed": sum(before[path] != after[path] for path in kept),
        "gone": len(before.keys() - kept),
    }
    if not before or not after:
        return "the corpus changed"
    if not any(counts.values()):
        return "the corpus is read or split in another way"
    files = [f"{count:,} {what}" for what, count in counts.items() if count]
    return f"the corpus changed: files {', '.join(files)}"


def _shown(value: Any) -> str:
    if value is None:
        return "not set"
    text = value if isinstance(value, str) and value else to_json(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def _folder(inputs: Inputs) -> Path:
    return Path(inputs["store"]) / "inputs"


def _history(path: Path) -> list[dict[str, Any]]:
    def checked(content: Any) -> list[dict[str, Any]]:
        return [entry for entry in content if isinstance(entry["inputs"], dict) and isinstance(entry["time"], str)]

    return _read(path, checked) or []


def _listing_path(folder: Path, corpus_id: str) -> Path:
    return folder / f"files-{corpus_id}.json"


def _files(folder: Path, corpus_id: str) -> dict[str, Any]:
    """What is known of each file by path; empty if there is no listing."""

    def files(listing: Any) -> dict[str, Any]:
        return {**listing["files"], **listing["validation_files"]}

    return _read(_listing_path(folder, corpus_id), files) or {}


def _read(path: Path, checked: Callable[[Any], Any]) -> Any:
    try:
        return checked(from_json(path.read_bytes()))
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        return None


def _keep(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    write_file(path, json_bytes(content))


@contextmanager
def _or_not() -> Iterator[None]:
    """Ignore errors: hints that cannot be read or written are not kept."""
    try:
        yield
    except (OSError, LMError) as error:
        _log.debug("not kept: %s", error)
