"""What every command has in common: exit statuses, one line for an error, output that any terminal can show."""

import io
import json
import sys
from collections.abc import Callable
from typing import Any

from lmcore import signals
from lmcore.errors import ERROR_PREFIX, STOPPED_STATUS, LMError, StoppedError
from lmcore.store.json_files import to_json

USAGE_STATUS = 2
"""Exit status of a command line that is not understood."""
_FOR_READERS = ("samples", "account", "warnings")
"""Texts of a result, which commands print in full before it."""
_SHOWN = 40
"""Characters of such a text."""
_LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x7f\x85\u2028\u2029"}
"""Characters that JSON allows in a text, and at which readers of lines cut (``str.splitlines``, JavaScript)."""


def main(action: Callable[[], None]) -> None:
    """Run a command; a deliberate error becomes one line on standard error and exit status 1.

    Ctrl-C ends it with INTERRUPTED_STATUS; SIGTERM, as a training that stopped before its end, with STOPPED_STATUS.
    """
    escape_output()
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


def escape_output() -> None:
    """Let both streams escape the characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(result: Any) -> None:
    """Print one line of JSON. Characters that the terminal's encoding lacks are escaped as JSON escapes them.

    On a terminal, texts that were printed above for the reader are cut, else they would push what is above off it.
    """
    line = to_json(_short(result) if sys.stdout.isatty() else result).translate(_LINE_ENDS)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(json.loads(line))
    print(line, flush=True)


def _short(result: dict[str, Any]) -> dict[str, Any]:
    return {name: _cut(value) if name in _FOR_READERS else value for name, value in result.items()}


def _cut(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _cut(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_cut(each) for each in value]
    return f"{value[:_SHOWN]}..." if isinstance(value, str) and len(value) > _SHOWN else value
