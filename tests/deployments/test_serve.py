"""``make serve`` as it is: a real server, the served deployments, runs that somebody else asked for."""

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
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import tiny_config

pytestmark = pytest.mark.flows

ROOT = Path(__file__).parents[2]
SECONDS = 150


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Api:
    """The REST API of the served server, asked as Prefect's own clients ask it."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/api"

    def call(self, path: str, body: object = None, tries: int = 10) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=90) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            # 503: another writer was in SQLite's way and nothing was done; Prefect's clients ask again too.
            if error.code != HTTPStatus.SERVICE_UNAVAILABLE or tries == 1:
                raise
            error.close()
        time.sleep(1)
        return self.call(path, body, tries - 1)

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

    def final_state(self, run: Any) -> Any:
        """Of a flow run, once it has ended."""

        def ended() -> Any:
            state = self.call(f"/flow_runs/{run['id']}")["state"]
            return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        return self.wait(ended)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    home, port = tmp_path_factory.mktemp("home"), free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    environment |= {"PREFECT_HOME": str(home), "PREFECT_SERVER_API_PORT": str(port)}
    with open(home / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.serve"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    api = Api(port)
    try:
        api.wait(lambda: api.call("/deployments/name/pretrain/pretrain"))
        yield api
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)
        print((home / "log").read_text())
    with pytest.raises(OSError):  # noqa: PT011  # the server went with it
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_run_asked_for_through_the_api_completes(served: Api, corpus: Path, tmp_path: Path) -> None:
    config = tiny_config(corpus, tmp_path / "store").model_dump(mode="json")
    deployment = served.call("/deployments/name/pretrain/pretrain")
    run = served.call(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"config": config}})

    assert served.final_state(run)["type"] == "COMPLETED"
    artifacts = served.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    assert {"report", "losses", "data", "tokenizer", "evaluation", "training"} <= {a["key"] for a in artifacts}
    assert list((tmp_path / "store" / "runs").glob("*/model/model.safetensors"))


@pytest.mark.parametrize("name", ["pretrain/pretrain", "prepare_data/prepare-data"])
def test_a_form_never_chooses_code(served: Api, corpus: Path, tmp_path: Path, name: str) -> None:
    config = tiny_config(corpus, tmp_path / "store").model_dump(mode="json")
    config["corpus"]["filter"] = "json.loads"
    deployment = served.call(f"/deployments/name/{name}")
    run = served.call(f"/deployments/{deployment['id']}/create_flow_run", {"parameters": {"config": config}})
    state = served.final_state(run)
    assert state["type"] == "FAILED"
    assert "corpus.filter names code" in state["message"]
    assert not (tmp_path / "store").exists()


def test_a_schedule_makes_runs_appear(served: Api) -> None:
    deployment = served.call("/deployments/name/prepare_data/prepare-data")
    schedule = {"active": True, "schedule": {"interval": 86400, "anchor_date": "2030-01-01T00:00:00Z"}}
    served.call(f"/deployments/{deployment['id']}/schedules", [schedule])
    filters = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}, "state": {"type": {"any_": ["SCHEDULED"]}}}}
    assert served.wait(lambda: served.call("/flow_runs/filter", filters))


def test_unknown_settings_are_refused_at_creation(served: Api) -> None:
    deployment = served.call("/deployments/name/pretrain/pretrain")
    body = {"parameters": {"config": {"train": {"lr": 1}}}}
    with pytest.raises(urllib.error.HTTPError) as refused:
        served.call(f"/deployments/{deployment['id']}/create_flow_run", body)
    assert refused.value.code == 409
    refused.value.close()
