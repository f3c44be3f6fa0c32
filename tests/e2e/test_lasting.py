"""What a person set on a served pipeline, after SIGTERM, SIGKILL and a start that migrates the database."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.serving import SERVER, Serving

pytestmark = pytest.mark.e2e

PREFECT_3_8_8 = "a3b9c7d2e5f1"
"""The newest revision of its database."""


def set_by_a_person(serving: Serving) -> None:
    """Settings of all kinds, as the UI and the command line write them."""
    api = serving.api
    weekly = api.call("/deployments/name/retrain/small")
    changes = {
        "parameters": {**weekly["parameters"], "text": ["/data/mine"]},
        "tags": ["lm", "mine"],
        "description": "My model",
        "concurrency_limit": 2,
    }
    api.call(f"/deployments/{weekly['id']}", changes, method="PATCH")
    path = f"/deployments/{weekly['id']}/schedules"
    [ours] = weekly["schedules"]
    api.call(f"{path}/{ours['id']}", {"active": True}, method="PATCH")
    berlin = {"cron": "0 4 * * 1", "timezone": "Europe/Berlin"}
    mine = {"schedule": berlin, "active": True, "parameters": {"size": "tiny"}}
    api.call(path, [mine, {**mine, "slug": "mine"}])

    paused = api.call("/deployments/name/pretrain/tiny")
    api.call(f"/deployments/{paused['id']}", {"paused": True}, method="PATCH")
    deleted = api.call("/deployments/name/gc/weekly")
    api.call(f"/deployments/{deleted['id']}/schedules/{deleted['schedules'][0]['id']}", method="DELETE")


def settings(serving: Serving) -> dict[str, Any]:
    """Of all deployments."""
    kept = ("parameters", "tags", "description", "paused", "enforce_parameter_schema", "concurrency_options")
    found = {}
    for deployment in serving.api.call("/deployments/filter", {}):
        limit = deployment["global_concurrency_limit"]
        schedules = [
            [schedule[key] for key in ("slug", "schedule", "active", "parameters")]
            for schedule in deployment["schedules"]
        ]
        row = {key: deployment[key] for key in kept} | {"limit": limit and limit["limit"]}
        found[deployment["id"]] = row | {"schedules": sorted(schedules, key=json.dumps)}
    return found


def prefect(serving: Serving, *arguments: str) -> None:
    command = [sys.executable, "-m", "prefect", *arguments]
    subprocess.run(command, cwd=REPOSITORY, env=serving.environment, check=True, capture_output=True, timeout=300)


def test_nothing_that_a_person_set_is_lost(tmp_path: Path) -> None:
    serving = Serving(tmp_path, PREFECT_RUNNER_POLL_FREQUENCY="1")
    try:
        serving.wait()
        set_by_a_person(serving)
        before = settings(serving)

        serving.process.send_signal(signal.SIGTERM)
        serving.process.wait(60)
        serving.start_again()
        assert settings(serving) == before
        assert 'retrain/small: parameters.text: kept as set on the server, ["/data/mine"]' in serving.said()
        assert "retrain/small: schedule weekly: kept as set on the server, 0 1 * * 0 Asia/Tokyo, on;" in serving.said()
        assert "gc/weekly: schedule weekly: kept as set on the server, none;" in serving.said()

        # Another flow's run with half of a character: from now on the server cannot show its runs.
        flow = serving.api.call("/flows/", {"name": "another"})["id"]
        assert serving.api.refused("/flow_runs/", {"flow_id": flow, "parameters": {"text": "a\ud83d"}}) == 500
        assert serving.api.refused("/flow_runs/filter", {}) == 500
        serving.kill()
        serving.process.wait(60)
        prefect(serving, "server", "database", "downgrade", "-y", "-r", PREFECT_3_8_8)
        serving.start_again()
        assert settings(serving) == before
        assert serving.api.call("/flow_runs/filter", {"flows": {"id": {"any_": [flow]}}})[0]["parameters"] == {
            "text": "a�"
        }
        assert "half of a character" in serving.said()
        assert "is of an older Prefect" in serving.said()
        [copy] = tmp_path.glob("prefect-before-*.db")
        assert str(copy) in serving.said()
    finally:
        serving.stop()
        print(serving.log.read_text())
    assert not serving.processes(SERVER)
