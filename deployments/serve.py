"""``lm serve``: a Prefect server on loopback with its UI, and the flows served from this machine.

Ports, folders and the password are Prefect's own settings: PREFECT_SERVER_API_PORT (4200), PREFECT_HOME (~/.prefect)
and PREFECT_SERVER_API_AUTH_STRING (user:password; without it, everybody on this machine may do everything).
"""

import asyncio
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from itertools import chain
from typing import TYPE_CHECKING

import flows  # sets the defaults that must stand before Prefect is imported  # noqa: F401
from lmcore.errors import ConfigError
from lmcore.signals import say_when_stopped
from lmcore.store.locks import locked

if TYPE_CHECKING:
    from tasks.server import Server

_HOST = "127.0.0.1"
_SECONDS_TO_START = 120
_SECONDS_TO_REPORT = 10
"""Seconds that the server outlives this process after a kill, so that its runs can report their end."""
_SECONDS_TO_END = _SECONDS_TO_REPORT + 12
"""Seconds until that server must have ended, ten of them for its clients."""
_SECONDS_BETWEEN_LOOKS = 1
_DEFAULTS = {
    # Otherwise a restarted server forgets who holds a slot, and the slot stays taken.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    # If a run is cancelled while its process is just starting, only the server can finish the cancel. By default it
    # waits five minutes for the process, which is killed after half a minute.
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_CANCELLING_TIMEOUT_SECONDS": "60",
    # By default only events are removed, and runs with their logs and pages stay for ever. The period is in seconds.
    "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",
    "PREFECT_SERVER_SERVICES_DB_VACUUM_RETENTION_PERIOD": f"{90 * 24 * 3600}",
    # A person who pressed a button waits for it. By default Prefect looks for new runs every ten seconds.
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
}
"""Prefect's settings here where the environment does not have them."""


def main() -> None:
    """Start the server, serve the deployments until interrupted, stop the server."""
    say_when_stopped("stopped")
    port = _port()
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)  # the UI calls the API on this port
    os.environ["PREFECT_API_URL"] = f"http://{_HOST}:{port}/api"
    # Otherwise any page in a browser on this machine may read the answers of the API.
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", f"http://{_HOST}:{port},http://localhost:{port}")
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if password and not password.isascii():
        raise ConfigError("PREFECT_SERVER_API_AUTH_STRING: Prefect's server takes ASCII only")
    if password:
        os.environ["PREFECT_API_AUTH_STRING"] = password  # what clients send
    with _only_one_here(), _server(port):
        access = "asks for user:password" if password else "no password: PREFECT_SERVER_API_AUTH_STRING sets one"
        print(f"\nPrefect UI: http://{_HOST}:{port} ({access})\nStop with Ctrl-C.\n", flush=True)
        _serve_deployments()


def _is_told(record: logging.LogRecord) -> bool:
    """False for the connection of a run that ends with this process: Python 3.11 logs its cancellation as an error."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def _only_one_here() -> AbstractContextManager[None]:
    """The lock of PREFECT_HOME, where a second ``lm serve`` would serve the same deployments and runs once more."""
    from prefect.settings import PREFECT_HOME

    from tasks.server import check_home

    check_home()
    home = PREFECT_HOME.value()
    advice = "one lm serve is enough for a PREFECT_HOME: stop that one, or name another PREFECT_HOME and port"
    return locked(home / "serve.lock", "refuse", what=f"the Prefect home {home}", advice=advice)


def _prepare_database() -> None:
    """Copy the database if this start migrates it, and fix rows that no server can show."""
    from deployments.doctor.database_rows import fix_database
    from tasks.database import copy_before_upgrade

    for line in (copy_before_upgrade(), fix_database()):
        if line:
            print(line, flush=True)


def _port() -> int:
    given = os.environ.get("PREFECT_SERVER_API_PORT") or "4200"
    if not (given.isascii() and given.isdecimal() and 0 < int(given) < 2**16):
        raise ConfigError(f"PREFECT_SERVER_API_PORT is {given!r}: give a number from 1 to 65535")
    return int(given)


def _wait_for_port(port: int) -> None:
    """Wait for the end of a server that a killed ``lm serve`` left. Raises ConfigError if the port stays taken."""
    from tasks.server import why_silent

    why = _why_taken(port)
    if why and not why_silent(f"http://{_HOST}:{port}/api"):
        print(f"port {port}: a Prefect server listens there, perhaps of an lm serve that was killed", flush=True)
        print(f"Waiting {_SECONDS_TO_END} s for its end", flush=True)
        end = time.monotonic() + _SECONDS_TO_END
        while (why := _why_taken(port)) and time.monotonic() < end:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
    if why:
        raise ConfigError(
            f"port {port} cannot be had ({why}): stop what listens there, another Prefect server "
            "perhaps, or choose another port with PREFECT_SERVER_API_PORT, and for a second server another PREFECT_HOME"
        )


def _why_taken(port: int) -> str:
    """Why no server can listen on the port; empty if it is free."""
    with socket.socket() as ours:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: what closed may linger
        try:
            ours.bind((_HOST, port))
        except OSError as error:
            return str(error.strerror)
    return ""


@contextmanager
def _server(port: int) -> Iterator[None]:
    """Run a server while the body runs. It is started again if it dies, and ends with this process."""
    from tasks.server import Server  # imports Prefect, which reads its settings only then

    _wait_for_port(port)
    _prepare_database()
    command = ["prefect", "server", "start", "--host", _HOST, "--port", str(port)]
    settings = {**os.environ, "PREFECT_CLI_PROMPT": "false"}  # it asks about profiles where there is a terminal
    server = Server([*command, "--log-level", "WARNING"], port, settings, outlives_us=_SECONDS_TO_REPORT)
    is_over = threading.Event()
    try:
        server.wait_until_healthy(_SECONDS_TO_START)
        with ThreadPoolExecutor(1) as keeper:
            keeper.submit(_keep, server, is_over)
            try:
                yield
            finally:
                is_over.set()
    finally:
        server.stop()


def _keep(server: "Server", is_over: threading.Event) -> None:
    """Start the server again whenever it dies. Otherwise a run that ends, and Ctrl-C, would wait a minute for it."""
    while not is_over.wait(_SECONDS_BETWEEN_LOOKS):
        if (status := server.start_again_if_dead()) is not None:
            print(f"The Prefect server ended with status {status}: it was started again", flush=True)


def _serve_deployments() -> None:
    from prefect import serve
    from prefect.client.orchestration import get_client

    from deployments.automations import create_automations
    from deployments.declaration import declared
    from deployments.deploy import create_limits
    from deployments.orphaned_runs import start_orphaned_runs
    from deployments.projects import projects, without_file
    from deployments.registration import register_all, registered

    own = projects()
    deployments = [*declared(), *own]
    create_limits()
    create_automations()
    start_orphaned_runs(deployment.full_name for deployment in deployments)
    with get_client(sync_client=True) as client:
        for line in chain(register_all(client, deployments), without_file(client, own)):
            print(line, flush=True)
    logging.getLogger("asyncio").addFilter(_is_told)
    # Else Prefect would pause what others serve as well, and switch on what a person has paused.
    serve(*map(registered, deployments), pause_on_shutdown=False)
