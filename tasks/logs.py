"""What Prefect prints: facts for people, no tracebacks for errors that explain themselves."""

import logging
import re

from lmcore.errors import LMError

_NOISY = ("httpx", "httpcore", "alembic", "prefect.server", "prefect._internal")


class _NoTraceback(logging.Filter):
    """A deliberate error is one line without its traceback, and none where the state of the run is about to say it."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not (record.exc_info and isinstance(record.exc_info[1], LMError)):
            return True
        error, message = record.exc_info[1], record.getMessage()
        record.exc_info = None
        record.msg, record.args = "%s", (message if repr(error) in message else f"{message}: {error}",)
        return not _SAID_BY_THE_STATE.search(message)


class _NoMachinery(logging.Filter):
    """Drops what the state of the run says anyway: that hooks and states are well, and the alarm at a cancel.

    The failure of a task is said by its flow.
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
    """Make Prefect's loggers in this process leave out tracebacks of deliberate errors and inner workings."""
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect.flows"):
        for unwanted in _FILTERS:
            logging.getLogger(name).addFilter(unwanted)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)


def leave_failure_to_command() -> None:
    """For a command that runs a flow: it says itself why the flow failed."""
    logging.getLogger("prefect.flow_runs").addFilter(lambda record: not _FAILED.match(record.getMessage()))
