"""What an action returns. A command prints it, a flow shows it in the Prefect UI."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lmcore.cli.command import print_json
from lmcore.markdown import columns

_log = logging.getLogger("lmcore")


@dataclass(frozen=True)
class Outcome:
    """A sentence and tables for people, JSON for programs."""

    data: dict[str, Any]
    """The last line on standard output, and the result of the flow."""
    sentence: str = ""
    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    """Rows by the key of their artifact."""
    notes: Sequence[str] = ()
    """Lines for the log."""
    text: str = ""
    """Printed as it is."""
    ok: bool = True
    """False: exit status 1, a failed flow run."""


def print_outcome(outcome: Outcome | None) -> None:
    """Print it: people's lines first, the JSON last. Ends with exit status 1 where something is wrong."""
    if outcome is None:
        return
    for shown in filter(None, [outcome.text, *map(columns, outcome.tables.values())]):
        print(shown)
    for line in filter(None, [*outcome.notes, outcome.sentence]):
        _log.info("%s", line)
    print_json(outcome.data)
    if not outcome.ok:
        sys.exit(1)
