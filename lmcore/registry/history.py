"""The history of a model: history.jsonl has a line for each event and is only appended to.

The last line that promotes a version or rolls back to one names the champion. champion.json is a copy of that line, for
other programs and for earlier versions of this one, which wrote the copy before the line.
"""

from pathlib import Path
from typing import Any

from lmcore import clock
from lmcore.errors import StoreError
from lmcore.store.files import json_bytes, read_object, write_file
from lmcore.store.json_lines import append_line, read_lines

Event = dict[str, Any]
"""time (UTC), event, version, from (the champion before), reason, decision."""

_CHAMPION = "champion.json"
_HISTORY = "history.jsonl"
_CHANGES_CHAMPION = ("promoted", "rolled back")


def read_history(folder: Path) -> list[Event]:
    """Each event of the model in ``folder``, oldest first. Raises StoreError when the history is damaged."""
    events = read_lines(folder / _HISTORY)
    copy = _read_copy(folder)
    return events if copy is None or copy in events else [*events, copy]


def champion_event(folder: Path) -> Event | None:
    """The event that made the present champion; None before the first promotion."""
    return next((event for event in reversed(read_history(folder)) if event["event"] in _CHANGES_CHAMPION), None)


def champion_id(folder: Path) -> str | None:
    """The id of the champion, such as v0001; None before the first promotion."""
    event = champion_event(folder)
    return str(event["version"]) if event else None


def earlier_champions(folder: Path) -> list[str]:
    """The ids of the champions before this one, oldest first. A rollback drops those after its version."""
    line: list[str] = []
    for event in read_history(folder):
        if event["event"] == "rolled back" and event["version"] in line:
            del line[line.index(event["version"]) :]
        if event["event"] in _CHANGES_CHAMPION:
            line.append(event["version"])
    return line[:-1]


def record(
    folder: Path, kind: str, version: str | None, reason: str, decision: dict[str, Any] | None, **more: Any
) -> None:
    """Append an event, and update the copy when the event changes the champion."""
    event: Event = {"time": clock.iso_timestamp(), "event": kind, "version": version, "from": champion_id(folder)}
    append_line(folder / _HISTORY, event | {"reason": reason, "decision": decision} | more)
    if kind in _CHANGES_CHAMPION:
        complete(folder)


def complete(folder: Path) -> None:
    """Write what a killed process, or one of an earlier version, left out of the history or its copy."""
    copy = _read_copy(folder)
    if copy and copy not in read_lines(folder / _HISTORY):
        append_line(folder / _HISTORY, copy)
    champion = champion_event(folder)
    if champion != copy:
        write_file(folder / _CHAMPION, json_bytes(champion))


def _read_copy(folder: Path) -> Event | None:
    """None where champion.json is missing or damaged: it is written again with the next change."""
    try:
        event = read_object(folder / _CHAMPION)
        event["version"], event["event"], event["time"]
    except (StoreError, LookupError):
        return None
    return event
