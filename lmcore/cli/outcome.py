"""What an action returns, and how a command ends: exit status, one line for an error, output for any terminal."""

import io
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmcore import signals
from lmcore.errors import ERROR_PREFIX, STOPPED_STATUS, LMError, StoppedError
from lmcore.markdown import columns
from lmcore.store.json_files import to_json

_FOR_READERS = ("samples", "account", "warnings")
"""Texts of a result, which commands print in full before it."""
_SHOWN = 40
"""Characters of such a text."""
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x7f\x85\u2028\u2029"}
"""Characters that JSON allows in a text, and at which readers of lines cut (``str.splitlines``, JavaScript)."""
_log = logging.getLogger("lmcore")


@dataclass(frozen=True)
class Outcome:
    """What an action returns: a sentence and tables for people, JSON for programs.

    A command prints it, a flow shows it in the Prefect UI.
    """

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


def main(action: Callable[[], None]) -> None:
    """Run a command; a deliberate error becomes one line on standard error and exit status 1.

    Ctrl-C ends it with INTERRUPTED_STATUS; SIGTERM, as a training that stopped before its end, with STOPPED_STATUS.
    Characters that the encoding of an output stream lacks are escaped.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    interruption = signals.Interruption()
    try:
        action()
    except (KeyboardInterrupt, signals.Terminated):
        pass  # said below
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(STOPPED_STATUS)
    except (LMError, OSError) as error:
        print(f"{ERROR_PREFIX}{error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if interruption.signal:  # whatever came of it: a file that was closed, a call that failed
            signals.leave(interruption.signal)
        signals.end_at_once()


def print_json(result: dict[str, Any]) -> None:
    """Print one line of JSON. Characters that the terminal's encoding lacks are escaped as JSON escapes them.

    On a terminal, texts that were printed above for the reader are cut, else they would push what is above off it.
    """
    if sys.stdout.isatty():
        result = {name: _cut(value) if name in _FOR_READERS else value for name, value in result.items()}
    line = to_json(result).translate(_LINE_ENDS)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(json.loads(line))
    print(line, flush=True)


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_cut(each) for each in value]
    return f"{value[:_SHOWN]}..." if isinstance(value, str) and len(value) > _SHOWN else value
