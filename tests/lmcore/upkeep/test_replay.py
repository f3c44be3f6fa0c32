"""A version can be made again from its receipt, to the last bit, and a difference is found."""

import json
from pathlib import Path

import pytest

from lmcore.model.evaluate import evaluate
from lmcore.model.export import export
from lmcore.registry.registry import add_version
from lmcore.registry.versions import Version
from lmcore.store.json_files import json_bytes
from lmcore.training.train import train
from lmcore.upkeep.replay import replay
from tests.conftest import Prepared, prepare, tiny_config, write_corpus


def make(prepared: Prepared, **settings: object) -> Version:
    run = prepared.run(**settings)
    training = train(run)
    export(training, evaluate(run, training.checkpoint))
    return add_version(prepared.store, "ja", run, {"promoted": True})


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, Version]:
    folder = tmp_path_factory.mktemp("replayed")
    prepared = prepare(tiny_config(write_corpus(folder / "corpus"), folder / "store"))
    return prepared, make(prepared, schedule="wsd", max_minutes=1000.0)


def test_a_version_that_began_with_a_trunk_is_made_again_to_the_last_bit(first: tuple[Prepared, Version]) -> None:
    prepared, version = first
    trunk = Path(version.receipt()["training"]["trunk"])
    second = make(prepared, init_from=str(trunk), init_optimizer=True, schedule="wsd")
    before = sorted(path.name for path in prepared.store.rglob("*"))
    result = replay(second)
    assert (result.version, result.differences) == ("ja/v0002", [])
    assert result.weights == second.receipt()["training"]["weights"]
    assert result.compared >= 5
    assert sorted(path.name for path in prepared.store.rglob("*")) == before


def test_a_replay_that_gives_another_model_says_where_it_began(first: tuple[Prepared, Version]) -> None:
    _, version = first
    path = version.folder / "receipt.json"
    receipt = json.loads(path.read_bytes())
    receipt["record"]["config"]["train"]["seed"] = 5
    path.unlink()
    path.write_bytes(json_bytes(receipt))
    losses, weights = replay(version).differences
    assert losses.startswith("validation loss at step 1 was ")
    assert weights.startswith(f"the weights were {receipt['training']['weights']}, are ")
