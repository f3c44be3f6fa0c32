"""Filters of Prefect's log: no internal messages, and no tracebacks of errors that explain themselves."""

import logging
import re

from lmcore.errors import LMError

_NOISY = ("httpx", "httpcore", "alembic", "prefect.server", "prefect._internal")


class _NoTraceback(logging.Filter):
    """Removes the traceback of a deliberate error, and its line if the state of the run repeats it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not (record.exc_info and isinstance(record.exc_info[1], LMError)):
            return True
        error, message = record.exc_info[1], record.getMessage()
        record.exc_info = None
        record.msg, record.args = "%s", (message if repr(error) in message else f"{message}: {error}",)
        return not _SAID_BY_THE_STATE.search(message)


class _NoMachinery(logging.Filter):
    """Drops messages that the state of the run repeats: hooks, good states, and the alarm at a cancel.

    The flow reports the failure of a task.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return not _MACHINERY.match(record.getMessage())


_MACHINERY = re.compile(
    "Received (KeyboardInterrupt|Terminated), shutting down|"
    r"Finished in state Failed\(.Task run encountered|"
    "Running hook |Hook .* finished running|Finished in state (Completed|Cached|Running)|"
    r"(Crash detected! |Finished in state Crashed\(')Execution was aborted by an? (termination|interrupt) signal"
)
_SAID_BY_THE_STATE = re.compile("Encountered exception during execution|Retries are exhausted|No retries configured")
_FAILED = re.compile(r"Finished in state Failed\(")
_FILTERS = (_NoTraceback(), _NoMachinery())


def quiet_prefect() -> None:
    """Filter Prefect's loggers in this process, and let it log what lmcore says."""
    if (lmcore := logging.getLogger("lmcore")).level == logging.NOTSET:
        lmcore.setLevel(logging.INFO)
    for name in ("prefect.engine", "prefect.flow_runs", "prefect.task_runs", "prefect.flows"):
        for unwanted in _FILTERS:
            logging.getLogger(name).addFilter(unwanted)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def leave_failure_to_command() -> None:
    """Drop Prefect's line on a failed flow, because the command itself reports why it failed."""
    logging.getLogger("prefect.flow_runs").addFilter(lambda record: not _FAILED.match(record.getMessage()))
