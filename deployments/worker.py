"""A worker of the pool that leaves no run behind.

Prefect's own worker kills its runs when it is stopped, and they show as running until an automation has missed their
heartbeats for minutes. This one schedules them again when it stops, and after a kill or a reboot when it starts.
"""

import os
import signal
import subprocess
import sys
import time

from prefect.client.orchestration import get_client

from deployments.deploy import POOL, server_url
from deployments.orphaned_runs import restart_dead_runs
from tasks.locks import runs_here
from tasks.server import terminate_after_us

_DEFAULTS = {
    "PREFECT_WORKER_QUERY_SECONDS": "1",  # a person who pressed a button waits for it
    "PREFECT_CLI_PROMPT": "false",
}
_SECONDS_TO_SAVE = 30
"""Seconds in which runs that were asked to end save and report it themselves."""


def work() -> int:
    """Run Prefect's worker until it ends. Returns its exit status. Raises ConfigError when no server is named."""
    server_url()
    _restart_our_runs()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", POOL]
    # In a session of its own, so that Ctrl-C reaches it once: a second signal would kill it.
    worker = subprocess.Popen(command, env=_DEFAULTS | os.environ, start_new_session=True)
    tie = terminate_after_us(worker.pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: worker.send_signal(signal.SIGTERM))
    status = worker.wait()
    tie.kill()
    end = time.monotonic() + _SECONDS_TO_SAVE
    _restart_our_runs()
    while any(runs_here().values()) and time.monotonic() < end:
        time.sleep(1)
        _restart_our_runs()
    return status


def _restart_our_runs() -> None:
    with get_client(sync_client=True) as client:
        restart_dead_runs(client, lambda run: run.work_pool_name == POOL)
