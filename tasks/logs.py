"""What Prefect prints: facts for people, no tracebacks for errors that explain themselves."""

import logging

from lmcore.errors import LMError

_NOISY = ("httpx", "httpcore", "alembic", "prefect.server", "prefect._internal")


class _NoTraceback(logging.Filter):
    """Drops the traceback of a deliberate error; the line about the failed state says it in words."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], LMError))


_NO_TRACEBACK = _NoTraceback()


def quiet_prefect() -> None:
    """Make Prefect's loggers in this process leave out tracebacks of deliberate errors and inner workings."""
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logging.getLogger(name).addFilter(_NO_TRACEBACK)
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
