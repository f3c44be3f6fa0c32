"""What is damaged is set aside, what is whole is kept, and nothing is pickled."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lmcore.errors import StoreError
from lmcore.model.model import load_weights, new_model, trained_model
from lmcore.runs.run import newest_checkpoint
from lmcore.store.artifacts import manifest_bytes, read_manifest
from lmcore.training.checkpoint import CheckpointWriter, load_checkpoint
from lmcore.training.distributed import Ranks
from lmcore.training.optim import Optimizers
from tests.conftest import Prepared, Trained


@pytest.fixture
def model() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))


@pytest.fixture
def optimizers(prepared: Prepared, model: torch.nn.Module) -> Optimizers:
    return Optimizers.from_config(model, prepared.config.train)


@pytest.fixture
def save(tmp_path: Path, model: torch.nn.Module, optimizers: Optimizers) -> Callable[..., Path]:
    """Make one step of training and save it."""

    def save_step(step: int, keep: int = 9) -> Path:
        model(torch.ones(2, 3)).sum().backward()
        optimizers.step(torch.tensor(False))
        writer = CheckpointWriter(tmp_path, keep, lambda step: False, Ranks())
        with writer.open():
            writer.save(step, model, optimizers, {"loss_sum": 0.1})
        return tmp_path / f"step-{step:08d}"

    return save_step


def truncate(path: Path) -> None:
    file = path / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def flip(path: Path) -> None:
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def lose_a_file(path: Path) -> None:
    (path / "state.json").unlink()


def lose_the_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()


def cut_the_manifest(path: Path) -> None:
    (path / "manifest.json").write_bytes((path / "manifest.json").read_bytes()[:40])


@pytest.mark.parametrize("damage", [truncate, flip, lose_a_file, lose_the_manifest, cut_the_manifest])
def test_a_damaged_newest_one_is_set_aside_and_the_older_one_used(
    save: Any, tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = save(1), save(2)
    damage(new)
    with caplog.at_level(logging.WARNING):
        assert newest_checkpoint(tmp_path) == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad-step-00000002", "step-00000001"]
    assert "step-00000002 set aside as bad-step-00000002" in caplog.text


def test_one_that_is_damaged_again_is_set_aside_again(save: Any, tmp_path: Path) -> None:
    for _ in range(2):
        truncate(save(1))
        assert newest_checkpoint(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["bad-step-00000001"]


def test_none_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_a_damaged_one_is_set_aside_whatever_its_folder_is_called(save: Any, tmp_path: Path) -> None:
    named = tmp_path / "format version"
    named.mkdir()
    whole, damaged = (save(step).rename(named / f"step-{step:08d}") for step in (1, 2))
    (damaged / "model.safetensors").write_bytes(b"")
    assert newest_checkpoint(named) == whole


def test_one_of_a_newer_version_is_refused_and_stays(save: Any, tmp_path: Path) -> None:
    save(1)
    new = save(2)
    manifest = {**read_manifest(new), "format_version": 99}
    (new / "manifest.json").write_bytes(manifest_bytes(manifest))
    with pytest.raises(StoreError, match="format version 99"):
        newest_checkpoint(tmp_path)
    assert new.exists()


def test_the_newest_ones_are_kept(save: Any, tmp_path: Path) -> None:
    for step in (8, 9, 10, 11):
        save(step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000011"]


def test_steps_beyond_eight_digits_are_the_newest(save: Any, tmp_path: Path) -> None:
    save(99_999_999)
    new = save(100_000_000, keep=1)
    assert list(tmp_path.iterdir()) == [new]
    assert newest_checkpoint(tmp_path) == new


def test_everything_comes_back(
    save: Any, tmp_path: Path, model: torch.nn.Module, optimizers: Optimizers, prepared: Prepared
) -> None:
    save(1)
    save(2)
    drawn = torch.rand(5)
    other = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2))
    of_other = Optimizers.from_config(other, prepared.config.train)
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert load_checkpoint(newest, other, of_other, Ranks()) == {"loss_sum": 0.1, "step": 2}
    assert torch.equal(torch.rand(5), drawn)
    assert all(torch.equal(*pair) for pair in zip(model.parameters(), other.parameters(), strict=True))
    state, other_state = optimizers.tensors(model), of_other.tensors(other)
    assert state.keys() == other_state.keys()
    assert all(torch.equal(state[key], other_state[key]) for key in state)


def test_nothing_is_pickled(trained: Trained) -> None:
    files = [path for path in trained.run.folder.rglob("*") if path.is_file()]
    names = {path.name for path in trained.training.checkpoint.iterdir()}
    tensors = {f"{part}.safetensors" for part in ("model", "optimizer", "random")}
    assert names == tensors | {"state.json", "manifest.json"}
    assert not [path for path in files if path.suffix in (".pt", ".pth", ".pkl", ".pickle", ".bin")]
    for path in files:
        # Old pickles begin with a protocol mark, torch's new ones are zip files.
        assert not path.read_bytes().startswith((b"\x80", b"PK")), path
    json.loads((trained.training.checkpoint / "state.json").read_text())


@pytest.mark.parametrize("other", [{"layers": 2}, {"architecture": "llama"}, {"width": 32}, {"tie_embeddings": False}])
def test_the_weights_of_another_model_are_refused(prepared: Prepared, trained: Trained, other: dict[str, Any]) -> None:
    model = new_model(prepared.run(model=other))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StoreError, match="of another model"):
        load_weights(trained.training.checkpoint, model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_trained_model_has_the_weights_of_its_checkpoint(trained: Trained, tmp_path: Path) -> None:
    moved = shutil.copytree(trained.training.checkpoint, tmp_path / "moved")
    one, two = trained_model(trained.run, trained.training.checkpoint), trained_model(trained.run, moved)
    fresh = new_model(trained.run)
    for mine, theirs, first in zip(one.parameters(), two.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert not torch.equal(mine, first)
