"""make serve: a Prefect server on loopback with its UI, and the flows served from this machine.

Ports, folders and the password are Prefect's own settings: PREFECT_SERVER_API_PORT (4200), PREFECT_HOME (~/.prefect)
and PREFECT_SERVER_API_AUTH_STRING (user:password; without it, everybody on this machine may do everything).
"""

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import flows  # sets the defaults that must stand before Prefect is imported  # noqa: F401
from lmcore import cli
from lmcore.errors import ConfigError, LMError

_HOST = "127.0.0.1"
_SECONDS_TO_START = 120
_SECONDS_TO_REPORT = 10
"""That the server outlives us when we are killed: the runs end too then, and say so."""


def main() -> None:
    """Start the server, serve the deployments until interrupted, stop the server."""
    port = int(os.environ.get("PREFECT_SERVER_API_PORT", "4200"))
    os.environ["PREFECT_SERVER_API_PORT"] = str(port)  # the UI asks for the API where this says
    os.environ["PREFECT_API_URL"] = f"http://{_HOST}:{port}/api"
    # Else any page in a browser on this machine may read what the API answers.
    os.environ.setdefault("PREFECT_SERVER_CORS_ALLOWED_ORIGINS", f"http://{_HOST}:{port},http://localhost:{port}")
    # Else a server that is started again forgets who holds a slot, and the slot is taken for ever.
    os.environ.setdefault(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
    )
    password = os.environ.get("PREFECT_SERVER_API_AUTH_STRING")
    if password:
        os.environ["PREFECT_API_AUTH_STRING"] = password  # what clients send
    with _server(port):
        access = "asks for user:password" if password else "no password: PREFECT_SERVER_API_AUTH_STRING sets one"
        print(f"\nPrefect UI: http://{_HOST}:{port} ({access})\nStop with Ctrl-C.\n", flush=True)
        _serve_deployments()


@contextmanager
def _server(port: int) -> Iterator[None]:
    from tasks.server import terminate_after_us  # imports Prefect, which reads its settings only then

    if _healthy(port):
        raise ConfigError(
            f"port {port} is taken by another Prefect server: stop it, or choose another port "
            "with PREFECT_SERVER_API_PORT"
        )
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", _HOST, "--port", str(port)]
    server = subprocess.Popen([*command, "--log-level", "WARNING"], start_new_session=True)
    tie = terminate_after_us(server.pid, seconds=_SECONDS_TO_REPORT)
    try:
        _wait_until_healthy(server, port)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM) if server.poll() is None else None
        server.wait(30)
        tie.kill()
        tie.communicate()


def _wait_until_healthy(server: "subprocess.Popen[bytes]", port: int) -> None:
    for _ in range(_SECONDS_TO_START * 2):
        if server.poll() is not None:
            raise LMError(f"the Prefect server ended with status {server.returncode}; its own output says why")
        if _healthy(port):
            return
        time.sleep(0.5)
    raise LMError(f"the Prefect server did not answer on port {port} within {_SECONDS_TO_START} s")


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{_HOST}:{port}/api/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _serve_deployments() -> None:
    from prefect import serve

    from deployments.automations import create_automations
    from deployments.leftovers import start_leftovers_again
    from deployments.limits import create_limits
    from deployments.presets import presets, retrain_presets
    from flows import models, store
    from flows.prepare_data import prepare_data
    from flows.pretrain import pretrain
    from flows.retrain import retrain

    create_limits()
    create_automations()
    start_leftovers_again()
    deployments: list[Any] = [
        flow.to_deployment(name, parameters={"config": settings}, tags=["lm", name], description=flow.description)
        for flow, found in ((pretrain, presets()), (prepare_data, presets()), (retrain, retrain_presets()))
        for name, settings in found.items()
    ]
    buttons: dict[str, list[Any]] = {"model": models.BUTTONS, "store": store.BUTTONS}
    deployments += [
        flow.to_deployment(name, tags=["lm"], description=flow.description)
        for name, found in buttons.items()
        for flow in found
    ]
    serve(*deployments)


if __name__ == "__main__":
    cli.main(main)
