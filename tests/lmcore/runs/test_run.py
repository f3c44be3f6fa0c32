"""What names a run, what refuses to continue it, and what stays when it begins again."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lmcore.errors import ConfigError, RunError, StoreError
from lmcore.runs.prepare import prepare_run, run_key, run_name
from lmcore.runs.run import Run
from lmcore.runs.seen_documents import SEEN_DOCUMENTS
from lmcore.settings.config import RunConfig
from lmcore.store.locks import locked
from lmcore.training.train import train
from tests.conftest import Prepared, start

RESULT: list[dict[str, Any]] = [
    {"max_steps": 7},
    {"epochs": 2.0},
    {"batch_size": 5},
    {"optimizer": "adam"},
    {"learning_rate": 2e-3},
    {"schedule": "constant"},
    {"warmup": "3 steps"},
    {"grad_clip": 0.5},
    {"trainable": ["*bias"]},
    {"seed": 1},
    {"precision": "bf16"},
    {"model": {"width": 32}},
    {"model": {"dropout": 0.2}},
    {"dataset": {"block_size": 32}},
    {"dataset": {"shuffle": False}},
]
NOT_RESULT: list[dict[str, Any]] = [
    {"device": "cpu"},
    {"validate_every": 3},
    {"validation_tokens": 2000},
    {"log_every": 1},
    {"checkpoint_every": 3},
    {"keep_checkpoints": 5},
]


@pytest.fixture
def start_named(prepared: Prepared, tmp_path: Path) -> Any:
    """Start a run with a fixed name in a store of the test's own."""

    def begin(fresh: bool = False, when_locked: str = "wait", **changes: Any) -> Run:
        config = prepared.changed(**changes).model_copy(update={"run": "mine", "when_locked": when_locked})
        return prepare_run(config, prepared.dataset, prepared.tokenizer, tmp_path, fresh)

    return begin


def test_equal_settings_have_equal_names(prepared: Prepared) -> None:
    name = run_name(prepared.changed(), prepared.dataset)
    assert name == run_name(RunConfig.model_validate_json(prepared.config.model_dump_json()), prepared.dataset)
    assert name.startswith("gpt2-1x16-")


@pytest.mark.parametrize("change", RESULT, ids=str)
def test_what_changes_the_result_changes_the_name(prepared: Prepared, change: dict[str, Any]) -> None:
    assert run_name(prepared.changed(**change), prepared.dataset) != run_name(prepared.config, prepared.dataset)


@pytest.mark.parametrize("change", NOT_RESULT, ids=str)
def test_speed_and_view_do_not_change_the_name(prepared: Prepared, change: dict[str, Any]) -> None:
    assert run_name(prepared.changed(**change), prepared.dataset) == run_name(prepared.config, prepared.dataset)


def test_store_sample_and_lock_policy_do_not_change_the_name(prepared: Prepared, tmp_path: Path) -> None:
    sample = prepared.config.sample.model_copy(update={"prompt": "def "})
    other = prepared.config.model_copy(update={"store": tmp_path, "sample": sample, "when_locked": "refuse"})
    assert run_name(other, prepared.dataset) == run_name(prepared.config, prepared.dataset)


def test_other_data_or_another_tokenizer_changes_the_name(prepared: Prepared) -> None:
    for field in ("id", "tokenizer_id"):
        other = prepared.dataset.model_copy(update={field: "0123456789abcdef"})
        assert run_name(prepared.config, other) != run_name(prepared.config, prepared.dataset)


def test_a_given_name_is_kept_but_its_cache_key_knows_the_settings(prepared: Prepared) -> None:
    one, two = (prepared.changed(seed=seed).model_copy(update={"run": "mine"}) for seed in (1, 2))
    assert run_name(one, prepared.dataset) == run_name(two, prepared.dataset) == "mine"
    assert run_key(one, prepared.dataset) != run_key(two, prepared.dataset)


def test_a_named_run_refuses_other_settings_and_shows_each(start_named: Any) -> None:
    folder = start_named().folder
    before = (folder / "config.json").read_bytes()
    with pytest.raises(RunError) as caught:
        start_named(seed=3, dataset={"block_size": 32})
    lines = str(caught.value).splitlines()
    assert "  dataset.block_size: was 16, is 32" in lines
    assert "  train.seed: was 0, is 3" in lines
    assert sum(": was " in line for line in lines) == 2
    assert (folder / "config.json").read_bytes() == before


def test_a_named_run_takes_new_speed_and_view_settings(start_named: Any) -> None:
    start_named()
    assert start_named(log_every=1).config.train.log_every == 1


def test_fresh_empties_the_folder_but_keeps_the_lock_file(start_named: Any) -> None:
    folder = start_named().folder
    inode = (folder / "lock").stat().st_ino
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("{}\n")
    run = start_named(fresh=True, seed=3)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "lock", SEEN_DOCUMENTS]
    assert (folder / "lock").stat().st_ino == inode
    assert run.config.train.seed == 3


@pytest.mark.parametrize("through_link", [False, True])
def test_a_run_that_begins_with_its_own_weights_is_not_emptied(
    prepared: Prepared, tmp_path: Path, through_link: bool
) -> None:
    run = prepared.run(max_steps=2)
    checkpoint = origin = train(run).checkpoint
    if through_link:
        origin = tmp_path / "elsewhere"
        origin.symlink_to(run.folder / "model")
        shutil.copytree(checkpoint, run.folder / "model")
        (run.folder / "model" / "manifest.json").unlink()
        (run.folder / "model" / "config.json").write_text(json.dumps(run.shape))
        for file in run.tokenizer_folder.glob("tokenizer*.json"):
            shutil.copy(file, run.folder / "model")
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path != run.lock}
    config = prepared.changed(max_steps=2, init_from=str(origin)).model_copy(update={"run": run.folder.name})
    with pytest.raises(ConfigError, match=r"--fresh would delete the weights .* Give another --run NAME"):
        prepare_run(config, prepared.dataset, prepared.tokenizer, prepared.store, fresh=True)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_running_run_is_not_emptied(start_named: Any) -> None:
    run = start_named()
    with locked(run.lock, "refuse"), pytest.raises(RunError, match="is in use by"):
        start_named(fresh=True, when_locked="refuse")
    assert (run.folder / "config.json").exists()


_DIE_WHILE_SAVING = """
import os, sys
from pathlib import Path
from lmcore.store.artifacts import write_artifact

with write_artifact(Path(sys.argv[1]) / "step-00000001", dict):
    os.kill(os.getpid(), 9)
"""


def test_what_a_process_left_that_died_while_saving_is_swept(start_named: Any) -> None:
    run = start_named()
    start("-c", _DIE_WHILE_SAVING, run.checkpoints).communicate()
    assert [path.name[:5] for path in run.checkpoints.iterdir()] == [".tmp-"]
    start_named()
    assert list(run.checkpoints.iterdir()) == []


def test_open_gives_back_what_was_prepared(start_named: Any) -> None:
    run = start_named()
    assert Run.open(run.folder) == run


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(StoreError, match="is not a run"):
            Run.open(folder)


def test_a_damaged_run_is_refused(start_named: Any) -> None:
    path = start_named().folder / "config.json"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(StoreError, match="is damaged"):
        Run.open(path.parent)


def test_a_run_of_a_newer_version_is_refused(start_named: Any) -> None:
    path = start_named().folder / "config.json"
    record = json.loads(path.read_text())
    record["identity"]["format_version"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(StoreError, match="update the program"):
        Run.open(path.parent)


def test_a_run_of_an_older_version_opens(start_named: Any) -> None:
    """Its record has a figure of the tokenizer that is no longer kept, and the lineage of its weights."""
    run = start_named()
    path = run.folder / "config.json"
    record = json.loads(path.read_bytes())
    record["tokenizer"]["transformers_exact"] = True
    path.write_text(json.dumps({**record, "datasets": [run.identity["dataset_id"]]}))
    assert Run.open(run.folder) == run
