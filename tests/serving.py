"""``make serve`` as people start it, asked through its REST API and killed part by part; for tests and benchmarks."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

from lmcore.settings.read import CUSTOM, toml_text

REPOSITORY = Path(__file__).parents[1]
SECONDS = 300
_MARK = "LM_SERVING"
_LOOK = 0.1
"""Seconds."""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's, without its Prefect settings and with ``settings``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return environment | {"OMP_NUM_THREADS": "1"} | settings


def settings_form(config: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a run with these settings."""
    return {"size": CUSTOM, "advanced": toml_text(config)}


class Api:
    """The REST API of a server, asked as Prefect's own clients ask it."""

    def __init__(self, port: int, password: str = "") -> None:
        self.port, self.password = port, password
        self.url = f"http://127.0.0.1:{port}/api"

    def call(self, path: str, body: object = None, tries: int = 10, method: str | None = None) -> Any:
        try:
            with urllib.request.urlopen(self.request(path, body, method), timeout=90) as answer:
                text = answer.read()
                return json.loads(text) if text else None
        except urllib.error.HTTPError as error:
            # 503: another writer was in SQLite's way and nothing was done; Prefect's clients ask again too.
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or tries == 1:
                raise
            error.close()
        time.sleep(1)
        return self.call(path, body, tries - 1, method)

    def request(self, path: str, body: object = None, method: str | None = None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.password:
            headers["Authorization"] = "Basic " + base64.b64encode(self.password.encode()).decode()
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(self.url + path, data, headers, method=method)

    def refused(self, path: str, body: object = None, method: str | None = None) -> int:
        """The status with which the server refuses; 0 if it does not."""
        try:
            self.call(path, body, method=method)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        return 0

    def wait(self, what: Callable[[], Any], seconds: float = SECONDS) -> Any:
        """The first true answer of ``what``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if answer := what():
                    return answer
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(_LOOK)
        raise AssertionError(f"not within {seconds} s")

    def deployment(self, flow: str) -> Any:
        """One of the flow's."""
        found = self.call("/deployments/filter", {"flows": {"name": {"any_": [flow]}}})
        return found[0] if found else None

    def start(self, flow: str, config: dict[str, Any]) -> str:
        """The id of a flow run with these settings, as the button in the UI makes it."""
        path = f"/deployments/{self.deployment(flow)['id']}/create_flow_run"
        return str(self.call(path, {"parameters": settings_form(config)})["id"])

    def run(self, run: str) -> Any:
        return self.call(f"/flow_runs/{run}")

    def cancel(self, run: str) -> None:
        """As the button in the UI does it."""
        self.call(f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def ended(self, run: str, *types: str, seconds: float = SECONDS) -> Any:
        """The state of a flow run, once it is of one of ``types``; by default once it has ended."""
        wanted = types or ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")

        def state() -> Any:
            found = self.run(run)["state"]
            return found if found["type"] in wanted else None

        return self.wait(state, seconds)

    def logs(self, run: str) -> str:
        body = {"logs": {"flow_run_id": {"any_": [run]}}, "sort": "TIMESTAMP_ASC", "limit": 200}
        return "\n".join(line["message"] for line in self.call("/logs/filter", body))

    def starts(self, run: str) -> list[int]:
        """The steps from which the run's trainings began."""
        lines = [line for line in self.logs(run).splitlines() if "parameters on cpu" in line]
        return [int(line.split(" step ")[1].split(" of ")[0]) for line in lines]


class Serving:
    """``python -m deployments serve`` in a home of its own; what it starts carries its mark."""

    def __init__(self, home: Path, **settings: str) -> None:
        self.api = Api(free_port(), settings.get("PREFECT_SERVER_API_AUTH_STRING", ""))
        self.log, self._mark = home / "log", uuid.uuid4().hex
        self.environment = clean_environment(
            PREFECT_HOME=str(home), PREFECT_SERVER_API_PORT=str(self.api.port), **{_MARK: self._mark}, **settings
        )
        self.home = home
        self.process = self._start()

    def _start(self) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "deployments", "serve"]
        self._begin = len(self.log.read_text()) if self.log.exists() else 0
        with open(self.log, "ab") as log:
            return subprocess.Popen(
                command, cwd=REPOSITORY, env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait(self) -> None:
        """Return once all deployments are served and the server answers."""

        def is_ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return "being served" in self.said() and self.api.call("/health")

        self.api.wait(is_ready)

    def said(self) -> str:
        """The output since the last start."""
        return self.log.read_text()[self._begin :]

    def start_again(self) -> None:
        self.process = self._start()
        self.wait()

    def processes(self, *words: str) -> list[int]:
        """Of what was started here and still runs, those whose command lines hold all ``words``."""
        return [pid for pid, command in self._commands() if all(word in command for word in words)]

    def _commands(self) -> list[tuple[int, str]]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{_MARK}={self._mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    found.append((int(folder.name), command))
            except OSError:
                continue  # it has ended, or is another user's
        return [(pid, command) for pid, command in found if command]  # one that has ended and waits has none

    def kill(self, *words: str, number: int = signal.SIGKILL) -> int:
        """Send a signal to all processes whose command lines hold ``words``; how many."""
        found = self.processes(*words)
        for pid in found:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue
        return len(found)

    def stop(self) -> list[str]:
        """End it as Ctrl-C does; what was left after it, killed."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        end = time.monotonic() + 10
        while (left := self._commands()) and time.monotonic() < end:
            time.sleep(_LOOK)
        self.kill()
        self.process.wait()
        return [command for _, command in left]


FLOW, TRAINING, SERVER, SERVE = "prefect.engine", "lmcore train", "prefect server start", "deployments serve"
