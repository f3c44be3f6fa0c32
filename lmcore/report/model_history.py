"""A model's page: what its retrainings made in a year, with a picture of their bits per byte.

It is written again from the history in the store, so it holds more than Prefect keeps of a page.
"""

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from lmcore import clock, markdown
from lmcore.errors import RegistryError
from lmcore.markdown import Markup
from lmcore.registry.versions import Event, Version, champion, history, versions
from lmcore.report.plots import versions_picture

_YEAR = timedelta(days=366)
_VERDICTS = ("promoted", "refused", "rolled back")
_HEAD = ("date", "version", "verdict", "bits per byte", "tokens", "run")
_ADDRESS = re.compile(r"https?://[\w.:\[\]-]+(/[\w.-]+)+")


@dataclass(frozen=True)
class ModelHistory:
    """A page and a line about it."""

    markdown: str
    description: str


def model_history(store: Path, name: str) -> ModelHistory:
    """The page of a model. Raises StoreError when its history is damaged."""
    since, best = clock.utc() - _YEAR, champion(store, name)
    known = {version.id: _figures(version) for version in versions(store, name)}
    events = [
        known.get(event["version"], {}) | event
        for event in history(store, name)
        if event["event"] in _VERDICTS and datetime.fromisoformat(event["time"]) >= since
    ]
    in_use = f"{best.id} is in use" if best else "no version is in use"
    if best and (figures := known[best.id]):
        in_use += f", {figures['bits_per_byte']:.4f} bits per byte"
    drawn = [event for event in events if "bits_per_byte" in event]
    parts = [
        f"# {markdown.escape(name)}",
        f"{in_use}.",
        *([markdown.picture("bits per byte", versions_picture(drawn))] if drawn else []),
        markdown.table(_HEAD, map(_row, reversed(events))),
    ]
    decisions = "1 decision" if len(events) == 1 else f"{len(events)} decisions"
    return ModelHistory("\n\n".join(parts) + "\n", f"{name}: {in_use}; {decisions} in a year")


def _figures(version: Version) -> Event:
    """Its figures, for events of earlier versions of this program, which have none; {} without a receipt."""
    with suppress(RegistryError, LookupError):
        return version.figures()
    return {}


def _row(event: Event) -> Iterator[object]:
    yield f"{datetime.fromisoformat(event['time']):%Y-%m-%d %H:%M} UTC"
    yield event["version"] or ""
    yield event["event"]
    yield f"{event['bits_per_byte']:.4f}" if "bits_per_byte" in event else ""
    yield f"{event['tokens']:,}" if "tokens" in event else ""
    run, page = str(event.get("run", "")), str(event.get("page", ""))
    yield Markup(f"[{markdown.escape(run)}]({page})") if _ADDRESS.fullmatch(page) else run
