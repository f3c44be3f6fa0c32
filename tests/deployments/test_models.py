"""A model's first version, and the buttons of models, as people press them in the UI."""

from pathlib import Path
from typing import Any

import pytest

from lmcore.registry import champion
from lmcore.retraining import RetrainConfig, RetrainingConfig
from tests.conftest import tiny_config
from tests.deployments.conftest import Api

pytestmark = pytest.mark.flows


@pytest.fixture(scope="module")
def store(served: Api, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a model "ours", whose only version a retraining that was asked for through the API has made."""
    store = tmp_path_factory.mktemp("models") / "store"
    retraining = RetrainingConfig(model_name="ours")
    config = RetrainConfig(**dict(tiny_config(corpus, store)), retraining=retraining).model_dump(mode="json")
    run = served.start_named("retrain/small", {"config": config})
    assert served.final_state(run)["type"] == "COMPLETED"
    assert page(served, run, "retraining").startswith("# ours: promoted")
    return store


def page(served: Api, run: Any, key: str) -> str:
    """The data of a run's artifact."""
    wanted = {"artifacts": {"flow_run_id": {"any_": [run["id"]]}, "key": {"any_": [key]}}}
    [artifact] = served.call("/artifacts/filter", wanted)
    return str(artifact["data"])


def test_what_the_buttons_of_a_model_say(served: Api, store: Path) -> None:
    choice = {"model_name": "ours", "store": str(store)}
    started = {
        flow: served.start_named(f"{flow}/model", {"choice": {**choice, **more}})
        for flow, more in (("versions", {}), ("rollback", {}), ("promote", {"version": "v0001"}))
    }
    states = {flow: served.final_state(run) for flow, run in started.items()}
    assert states["versions"]["type"] == "COMPLETED"
    assert "v0001" in page(served, started["versions"], "versions-ours")
    assert states["rollback"]["type"] == states["promote"]["type"] == "FAILED"
    assert "no earlier champion to go back to" in states["rollback"]["message"]
    assert "expected was none, found is v0001" in states["promote"]["message"]
    current = champion(store, "ours")
    assert current is not None
    assert current.id == "v0001"
