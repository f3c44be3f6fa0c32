"""``make serve`` as it is, once for all tests: a real server with a password, and the served deployments."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import serving
from tests.conftest import REPOSITORY, tiny_config
from tests.serving import clean_environment, free_port, settings_form

PASSWORD = "somebody:secret"


class Api(serving.Api):
    """With the home of its server, and runs of deployments by their names."""

    def __init__(self, port: int, password: str = "", home: Path = Path()) -> None:
        super().__init__(port, password)
        self.home = home

    def start_named(self, name: str, parameters: dict[str, Any]) -> Any:
        """A flow run of the deployment ``name``, as the button in the UI makes it."""
        deployment = self.call(f"/deployments/name/{name}")
        return self.call(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": parameters})

    def final_state(self, run: Any) -> Any:
        """Of a flow run, once it has ended."""
        return self.ended(run["id"], "COMPLETED", "FAILED", "CRASHED")


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
    command = [sys.executable, "-m", "deployments", "serve"]
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    api = Api(port, PASSWORD, home)
    try:
        api.wait(lambda: api.call("/deployments/name/gc/weekly"))  # the last of them
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
    run = served.start_named("pretrain/tiny", settings_form(tiny_config(corpus, store).model_dump(mode="json")))
    return Completed(run, served.final_state(run), store)
