"""What every command has in common: exit statuses, one line for an error, output that any terminal can show."""

import io
import json
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from lmcore.errors import LMError, StoppedError
from lmcore.plain_json import to_json

ERROR_PREFIX = "error: "
"""Begins the message of a deliberate error; a parent process finds it by this."""
STOPPED_STATUS = 75
"""Exit status of a command that saved and ended on request (EX_TEMPFAIL: the same command again goes on)."""
USAGE_STATUS = 2
"""Exit status of a command line that is not understood."""


def main(verb: Callable[[], None]) -> None:
    """Run a command; a deliberate error becomes one line on standard error and exit status 1.

    SIGTERM ends it as Ctrl-C does, and as a training that stopped before its end: with exit status STOPPED_STATUS.
    """
    escape_output()
    signal.signal(signal.SIGTERM, _terminate)
    try:
        verb()
    except (StoppedError, _TerminatedError) as error:
        print(error, file=sys.stderr)
        sys.exit(STOPPED_STATUS)
    except (LMError, OSError) as error:
        print(f"{ERROR_PREFIX}{error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        sys.exit(130)


def escape_output() -> None:
    """Let both streams escape the characters that their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def print_json(result: Any) -> None:
    """Print one line of JSON. Characters that the terminal's encoding lacks are escaped as JSON escapes them."""
    line = to_json(result)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        line = json.dumps(json.loads(line))
    print(line, flush=True)


class _TerminatedError(BaseException):
    """Like KeyboardInterrupt, so that nobody takes it for a failure."""


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one is not to disturb the saving
    raise _TerminatedError("stopped on request: the same command continues")
