"""The process of a flow run: it ends with the process that started it, holds its run's lock, and loses no cancel."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import cache
from typing import Any
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment
from prefect.states import Cancelled

from lmcore import clock
from lmcore.runs.launch import end_with_parent
from lmcore.signals import resend_lost
from tasks.locks import hold_run
from tasks.server import terminate_after_us

_SECONDS_BETWEEN_STATES = 10
_SECONDS_TO_END = 45
"""Seconds from a cancel until its process has ended: Prefect kills it after 30."""
_cancelled: set[UUID] = set()
"""The runs of this process that it ended because they were cancelled."""


@cache
def stop_with_parent() -> "subprocess.Popen[bytes] | None":
    """End a temporary server with this process, and the run of a deployment with the process that serves it.

    Prefect stops its temporary server at exit, but not after ``kill -9``. A run could be neither cancelled nor found if
    the process that serves it is gone.
    """
    if deployment.id:
        end_with_parent(os.getppid())
    module = sys.modules.get("prefect.server.api.server")  # loaded by whoever needed it: it takes seconds
    server = module.SubprocessASGIServer().server_process if module else None
    return terminate_after_us(server.pid) if server else None


@cache
def keep_terminations() -> None:
    """Keep the exception that Prefect raises on a cancel from being lost."""
    resend_lost(TerminationSignal, lambda number: os.kill(os.getpid(), number))


def settle_in(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook on_running: its process ends with the one that started it, and holds the lock of the run."""
    stop_with_parent()
    keep_terminations()
    if flow_run.deployment_id:
        hold_run(flow_run.id)
        threading.Thread(target=_watch_for_cancel, args=(flow_run.id,), daemon=True, name="cancel").start()


def end_as_cancelled(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook on_crashed: a run that ``_watch_for_cancel`` ended has not crashed."""
    if flow_run.id in _cancelled:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(
                flow_run.id, Cancelled(message="cancelled; its process noticed it late"), force=True
            )


def _watch_for_cancel(run: UUID) -> None:
    """End this process when its run was cancelled and the cancel did not reach it.

    Prefect's runners and workers stop listening for cancels when the server is away for some seconds.
    """
    while True:
        time.sleep(_SECONDS_BETWEEN_STATES)
        with suppress(Exception), get_client(sync_client=True) as client:  # the server is away
            state = client.read_flow_run(run).state
            if state and _is_missed_cancel(state):
                _cancelled.add(run)
                os.kill(os.getpid(), signal.SIGTERM)
                return


def _is_missed_cancel(state: State[Any]) -> bool:
    """Whether a cancel is older than the time that a process needs to end."""
    if state.type == StateType.CANCELLED:
        return True
    return state.type == StateType.CANCELLING and (clock.utc() - state.timestamp).total_seconds() > _SECONDS_TO_END
