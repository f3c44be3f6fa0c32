"""A model's first version, and the buttons of models, as people press them in the UI."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from lmcore.registry.versions import champion, model_folder
from lmcore.settings.retraining import RetrainConfig, RetrainingConfig
from lmcore.store.locks import locked
from tests.conftest import tiny_config
from tests.deployments.conftest import Api
from tests.serving import settings_form

pytestmark = pytest.mark.flows


def retrain(served: Api, corpus: Path, store: Path, **settings: object) -> Any:
    """A run that trains the model "ours" again."""
    retraining = RetrainingConfig(model_name="ours")
    config = RetrainConfig(**dict(tiny_config(corpus, store)), retraining=retraining).model_dump(mode="json")
    return served.start_named("retrain/small", settings_form(config | settings))


@pytest.fixture(scope="module")
def store(served: Api, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model "ours", whose only version a retraining that was asked for through the API has made."""
    store = tmp_path_factory.mktemp("models") / "store"
    run = retrain(served, corpus, store)
    state = served.final_state(run)
    assert (state["type"], state["name"]) == ("COMPLETED", "First model")
    assert {"model ours", "first model"} <= set(served.run(run["id"])["tags"])
    assert "v0001" in page(served, run, "model-ours-small")
    assert page(served, run, "retraining-ours-small").startswith("# ours: promoted")
    return store


def page(served: Api, run: Any, key: str) -> str:
    """The data of a run's artifact."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": [key]}}}
    [artifact] = served.call("/artifacts/filter", wanted)
    return str(artifact["data"])


def test_what_the_buttons_of_a_model_say(served: Api, store: Path) -> None:
    model = {"model_name": "ours", "store": str(store)}
    started = {
        flow: served.start_named(f"{flow}/model", {**model, **more})
        for flow, more in (("versions", {}), ("evaluate", {}), ("rollback", {}), ("promote", {"version": "v0001"}))
    }
    states = {flow: served.final_state(run) for flow, run in started.items()}
    assert states["versions"]["type"] == states["evaluate"]["type"] == "COMPLETED"
    assert "bits per byte" in page(served, started["evaluate"], "scores")
    assert "v0001" in page(served, started["versions"], "versions-ours")
    assert "ours: v0001 is in use" in served.logs(started["versions"]["id"])
    assert states["rollback"]["type"] == states["promote"]["type"] == "FAILED"
    assert not any("Traceback" in served.logs(run["id"]) for run in started.values())
    assert "no earlier champion to go back to" in states["rollback"]["message"]
    assert "ours/v0001 already is the champion" in states["promote"]["message"]
    current = champion(store, "ours")
    assert current is not None
    assert current.id == "v0001"


def test_a_button_of_the_store_that_cannot_do_its_work_says_why_in_words(served: Api, store: Path) -> None:
    run = served.start_named("forget/store", {"store": str(store), "document": "no such file"})
    assert "is neither a document hash" in served.final_state(run)["message"]
    assert "Traceback" not in served.logs(run["id"])


def test_a_button_that_removes_something_only_says_what_it_would(served: Api, store: Path) -> None:
    dataset = store / "datasets" / "nobody-needs-it"
    dataset.mkdir()
    run = served.start_named("gc/store", {"store": str(store), "grace_hours": 0})
    assert served.final_state(run)["type"] == "COMPLETED"
    assert "datasets/nobody-needs-it" in page(served, run, "gc")
    assert dataset.is_dir()


def test_of_two_retrainings_at_once_one_waits_or_is_refused_and_says_for_whom(
    served: Api, corpus: Path, store: Path
) -> None:
    in_use = f"the retraining of ours is in use by process {os.getpid()} on {socket.gethostname()}"
    with locked(model_folder(store, "ours") / "retraining.lock", "refuse"):
        refused = retrain(served, corpus, store, when_locked="refuse")
        waiting = retrain(served, corpus, store, when_locked="wait")
        state = served.final_state(refused)
        assert state["type"] == "FAILED"
        assert in_use in state["message"]
        served.wait(lambda: f"waiting: {in_use}" in served.logs(waiting["id"]))
        assert served.run(waiting["id"])["state"]["type"] == "RUNNING"
    assert served.final_state(waiting)["type"] == "COMPLETED"
    assert "nothing new" in page(served, waiting, "retraining-ours-small")
