"""What people and machines do to runs of a served pipeline, done for real."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from lmcore.runs.metrics import read_metrics
from lmcore.runs.run import step_of
from tasks.policies import STARTS
from tests.conftest import tiny_config, wait_until
from tests.e2e.conftest import Listener
from tests.serving import FLOW, SERVER, TRAINING, Api, Serving, settings_form

pytestmark = pytest.mark.e2e


def settings(corpus: Path, store: Path, **train: object) -> dict[str, Any]:
    return tiny_config(corpus, store, device="cpu", log_every=10, **train).model_dump(mode="json")


def steps(store: Path) -> int:
    """The last step of the only run in the store."""
    rows = [row["step"] for path in store.glob("runs/*/metrics.jsonl") for row in read_metrics(path)]
    return max(rows, default=0)


def checkpoints(store: Path) -> list[Path]:
    return sorted(store.glob("runs/*/checkpoints/step-*"))


def test_nobody_gets_in_without_the_password(serving: Serving) -> None:
    assert Api(serving.api.port).refused("/flow_runs/filter", {}) == 401
    assert serving.api.refused("/flow_runs/filter", {}) == 0


@pytest.mark.parametrize("change", [{"size": "huge"}, {"max_minutes": -1}, {"nonsense": 1}])
def test_bad_parameters_are_refused_at_creation(serving: Serving, change: dict[str, object]) -> None:
    deployment = serving.api.deployment("pretrain")["id"]
    body = {"parameters": change}
    assert serving.api.refused(f"/deployments/{deployment}/create_flow_run", body) == 409


def test_a_run_survives_the_death_of_its_training_and_then_its_own(
    serving: Serving, listener: Listener, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run = serving.api.start("pretrain", settings(corpus, store, max_steps=5000, checkpoint_every=100))
    wait_until(lambda: bool(checkpoints(store)), "a checkpoint")
    assert serving.kill(TRAINING)
    wait_until(lambda: len(serving.api.starts(run)) == 2, "the retry of the training")
    assert serving.kill(FLOW)
    assert serving.api.ended(run, "COMPLETED")
    first, second, third = serving.api.starts(run)
    assert first == 0 < second <= third < 5000
    assert serving.api.run(run)["run_count"] == 2
    wait_until(lambda: bool(listener.of("finished", run)), "the notice of the end")
    assert len(listener.of("finished", run)) == 1
    assert not listener.of("failed", run) + listener.of("crashed too often", run)


def test_a_run_that_crashes_at_every_start_is_given_up_and_people_are_told_once(
    serving: Serving, listener: Listener, corpus: Path, tmp_path: Path
) -> None:
    run = serving.api.start("pretrain", settings(corpus, tmp_path / "store", max_steps=10**6))

    def began(count: int) -> bool:
        found = serving.api.run(run)
        return found["run_count"] == count and found["state"]["type"] == "RUNNING"

    for count in range(1, STARTS + 1):
        serving.api.wait(lambda count=count: began(count))
        assert serving.kill(FLOW)
    assert serving.api.ended(run)["type"] == "CRASHED"
    wait_until(lambda: bool(listener.of("crashed too often")), "the notice")
    assert [notice["run"] for notice in listener.of("crashed too often")] == [run]
    assert not serving.processes(FLOW) + serving.processes(TRAINING)


def test_people_are_told_why_a_run_failed(serving: Serving, listener: Listener, tmp_path: Path) -> None:
    run = serving.api.start("prepare_data", settings(tmp_path / "nowhere", tmp_path / "store"))
    wait_until(lambda: bool(listener.of("failed")), "the notice")
    [notice] = listener.of("failed")
    assert notice["run"] == run
    assert "nowhere does not exist" in notice["text"]


def test_a_scheduled_run_appears_and_ends_by_itself(serving: Serving, corpus: Path, tmp_path: Path) -> None:
    deployment = serving.api.deployment("prepare_data")["id"]
    soon = (datetime.now(UTC) + timedelta(seconds=5)).isoformat()
    parameters = settings_form(settings(corpus, tmp_path / "store"))
    schedule = {"active": True, "schedule": {"interval": 10**6, "anchor_date": soon}, "parameters": parameters}
    serving.api.call(f"/deployments/{deployment}/schedules", [schedule])
    query = {"flow_runs": {"deployment_id": {"any_": [deployment]}}}

    def scheduled() -> list[Any]:
        return [run for run in serving.api.call("/flow_runs/filter", query) if run["auto_scheduled"]]

    run = min(serving.api.wait(scheduled), key=lambda run: run["expected_start_time"])
    assert serving.api.ended(run["id"])["type"] == "COMPLETED"
    assert list((tmp_path / "store" / "datasets").iterdir())


def test_the_server_comes_back_by_itself_and_make_serve_ends_in_the_meantime_too(
    serving: Serving, corpus: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    run = serving.api.start("pretrain", settings(corpus, store, max_steps=10**6))
    wait_until(lambda: steps(store) > 0, "training")
    training = serving.processes(TRAINING)
    assert serving.kill(SERVER)
    serving.wait()
    assert serving.processes(TRAINING) == training
    assert serving.api.run(run)["state"]["type"] == "RUNNING"
    reached = steps(store)
    wait_until(lambda: steps(store) > reached, "more steps")

    assert serving.kill(SERVER)
    assert not serving.stop()
    reached = steps(store)
    assert step_of(checkpoints(store)[-1]) >= reached
    serving.start_again()
    wait_until(lambda: steps(store) > reached, "the training to go on")
    serving.api.cancel(run)
    assert serving.api.ended(run)["type"] == "CANCELLED"


@pytest.mark.parametrize("what", ["promoted", "refused"])
def test_people_are_told_what_became_of_a_model(serving: Serving, listener: Listener, what: str) -> None:
    resource = {"prefect.resource.id": "lm.model.ours", "prefect.resource.name": f"ours {what}"}
    event = {
        "occurred": datetime.now(UTC).isoformat(),
        "event": f"lm.model.{what}",
        "resource": resource,
        "payload": {"version": "v0002"},
        "id": "00000000-0000-4000-8000-" + what.encode().hex()[:12],
    }
    serving.api.call("/events", [event])
    wait_until(lambda: bool(listener.of(what)), "the notice")
    assert listener.of(what)[0] == {"what": what, "text": f"ours {what}", "payload": {"version": "v0002"}}
