"""``make serve`` as it is, once for all tests: a real server with a password, and the served deployments."""

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, tiny_config

SECONDS = 150
PASSWORD = "somebody:secret"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Api:
    """The REST API of a server, asked as Prefect's own clients ask it."""

    def __init__(self, port: int, password: str = "", home: Path = Path()) -> None:
        self.port, self.password, self.home = port, password, home
        self.url = f"http://127.0.0.1:{port}/api"

    def call(self, path: str, body: object = None, tries: int = 10) -> Any:
        try:
            with urllib.request.urlopen(self.request(path, body), timeout=90) as answer:
                return json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            # 503: another writer was in SQLite's way and nothing was done; Prefect's clients ask again too.
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or tries == 1:
                raise
            error.close()
        time.sleep(1)
        return self.call(path, body, tries - 1)

    def request(self, path: str, body: object = None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if self.password:
            headers["Authorization"] = "Basic " + base64.b64encode(self.password.encode()).decode()
        return urllib.request.Request(self.url + path, None if body is None else json.dumps(body).encode(), headers)

    def refused(self, path: str, body: object = None) -> int:
        """The status with which the server refuses."""
        with pytest.raises(urllib.error.HTTPError) as refused:
            self.call(path, body)
        refused.value.close()
        return int(refused.value.code)

    def wait(self, what: Callable[[], Any]) -> Any:
        """The first true answer of ``what``."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            try:
                if answer := what():
                    return answer
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.5)
        raise AssertionError(f"not within {SECONDS} s")

    def start(self, name: str, parameters: dict[str, Any]) -> Any:
        """A flow run of the deployment ``name``, as the button in the UI makes it."""
        deployment = self.call(f"/deployments/name/{name}")
        return self.call(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})

    def final_state(self, run: Any) -> Any:
        """Of a flow run, once it has ended."""

        def ended() -> Any:
            state = self.call(f"/flow_runs/{run['id']}")["state"]
            return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        return self.wait(ended)


def clean_environment(**settings: str) -> dict[str, str]:
    """This process's, without its Prefect settings and with ``settings``."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    return environment | settings


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home, port = tmp_path_factory.mktemp("home"), free_port()
    environment = clean_environment(
        PREFECT_HOME=str(home),
        PREFECT_SERVER_API_PORT=str(port),
        PREFECT_SERVER_API_AUTH_STRING=PASSWORD,
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2",
        PREFECT_SERVER_SERVICES_EVENT_PERSISTER_FLUSH_INTERVAL="0.5",
        PREFECT_RUNNER_POLL_FREQUENCY="1",
        PYTHONPATH=str(Path(__file__).parent / "no_pickle"),
        LM_TEST_GUARDED=str(home / "guarded"),
    )
    command = [sys.executable, "-m", "deployments.serve"]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    api = Api(port, PASSWORD, home)
    try:
        api.wait(lambda: api.call("/deployments/name/versions/model"))  # the last of them
        yield api
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
        print((home / "log").read_text())
    with pytest.raises(OSError):  # noqa: PT011  # the server went with it
        socket.create_connection(("127.0.0.1", port), timeout=1)


@dataclass(frozen=True)
class Completed:
    """A run of a training that was asked for through the API, its last state, and the store it wrote."""

    run: Any
    state: Any
    store: Path


@pytest.fixture(scope="session")
def completed(served: Api, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Completed:
    store = tmp_path_factory.mktemp("completed") / "store"
    run = served.start("pretrain/tiny", {"config": tiny_config(corpus, store).model_dump(mode="json")})
    return Completed(run, served.final_state(run), store)
