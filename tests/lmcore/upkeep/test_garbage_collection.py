"""What is needed stays, what is not goes, whoever works beside it and whenever it is killed."""

import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore import clock
from lmcore.dataset.audit import problems
from lmcore.errors import RunError, StoreError
from lmcore.registry.registry import add_version, promote
from lmcore.registry.versions import versions
from lmcore.runs.run import Run
from lmcore.store.artifacts import verify_artifact
from lmcore.store.files import remove
from lmcore.store.locks import locked, store_locked
from lmcore.upkeep.garbage_collection import collect
from lmcore.upkeep.verify import check_receipt
from tests.conftest import finished, prepare, tiny_config, write_corpus
from tests.dying import ends

REMOVALS = [(os, "rename"), (os, "unlink"), (shutil, "rmtree")]

KINDS = ("runs", "datasets", "shards", "tokenizers")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three corpora with two runs each, the last of a corpus from the trunk of the first of the one before.

    The runs are touched in their order. The first of each corpus is a version.
    """
    folder = tmp_path_factory.mktemp("garbage")
    trunk, runs = "", []
    for number in range(3):
        config = tiny_config(write_corpus(folder / f"corpus-{number}", 200, seed=number), folder / "store")
        if trunk:
            source = folder / "store" / "tokenizers" / runs[0].identity["tokenizer_id"]
            tokenizer = config.tokenizer.model_copy(update={"source": str(source)})
            config = config.model_copy(update={"tokenizer": tokenizer})
        prepared = prepare(config)
        runs.append(finished(prepared, max_steps=2, schedule="wsd", decay="50 %", init_from=trunk))
        add_version(prepared.store, "lm", runs[-1], {"promoted": True})
        trunk = str(runs[-1].checkpoints / "step-00000001")
        runs.append(finished(prepared, max_steps=2, seed=9))
    for age, run in enumerate(reversed(runs)):
        os.utime(run.folder / "config.json", (1e9 - age, 1e9 - age))
    promote(folder / "store", "lm", "v0001", expected=None, reason="")
    return folder / "store"


@pytest.fixture
def store(original: Path, tmp_path: Path) -> Path:
    return copied(original, tmp_path / "store")


def copied(store: Path, to: Path) -> Path:
    shutil.copytree(store, to, copy_function=os.link)
    for path in to.rglob("*.json"):  # as the program does not, tests may write into these
        content, stat = path.read_bytes(), path.stat()
        path.unlink()
        path.write_bytes(content.replace(bytes(store), bytes(to)) if path.name == "config.json" else content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return to


def names(store: Path, kind: str) -> list[str]:
    return sorted(path.name for path in (store / kind).iterdir())


def oldest_run(store: Path) -> Path:
    return min((store / "runs").iterdir(), key=lambda run: (run / "config.json").stat().st_mtime)


def check_whole(store: Path) -> None:
    """Every version verifies, and every run that is more than somebody's beginning has all that it needs."""
    for version in versions(store, "lm"):
        assert list(check_receipt(version)) == []
    for folder in (store / "runs").glob("[!.]*"):
        run = Run.open(folder)
        if (folder / "training.json").exists():
            assert list(problems(run.dataset_folder)) == []
            verify_artifact(run.tokenizer_folder)
        for checkpoint in run.checkpoints.glob("step-*"):
            verify_artifact(checkpoint)


def test_without_versions_only_the_newest_runs_and_what_they_need_stay(store: Path) -> None:
    shutil.rmtree(store / "models")
    runs = sorted((store / "runs").iterdir(), key=lambda run: (run / "config.json").stat().st_mtime)
    newest = Run.open(runs[-1])
    size = sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
    gone = collect(store, keep_runs=1, grace_seconds=0)
    assert names(store, "runs") == [newest.folder.name]
    assert names(store, "datasets") == [newest.dataset_folder.name]
    assert names(store, "tokenizers") == [newest.tokenizer_folder.name]
    assert len(gone.removed) >= 5 + 2 + 2
    assert sum(path.stat().st_size for path in store.rglob("*") if path.is_file()) < size
    check_whole(store)
    assert collect(store, keep_runs=0, grace_seconds=0).removed
    assert [name for kind in KINDS for name in names(store, kind)] == []


def test_of_a_run_that_others_began_with_the_checkpoint_stays(store: Path) -> None:
    first, second, third = versions(store, "lm")
    for version in (first, second):
        remove(version.folder)
    origin = third.receipt()["origin"]["path"]
    collect(store, keep_runs=0, grace_seconds=0)
    pinned = store / Path(*Path(origin).parts[:2])
    assert names(store, "runs") == sorted([pinned.name, third.receipt()["run"]])
    assert sorted(path.name for path in pinned.iterdir()) == [
        "checkpoints",
        "config.json",
        "lock",
        "seen_documents.safetensors",
    ]
    assert [path.name for path in (pinned / "checkpoints").iterdir()] == [Path(origin).name]
    check_whole(store)
    assert collect(store, keep_runs=0, grace_seconds=0).removed == {}


def test_a_dry_run_says_what_a_real_one_does(store: Path) -> None:
    remove(versions(store, "lm")[0].folder)
    before = [path for path in sorted(store.rglob("*")) if path.name != "in_use"]
    said = collect(store, keep_runs=1, grace_seconds=0, dry_run=True)
    assert [path for path in sorted(store.rglob("*")) if path.name != "in_use"] == before
    assert said.removed
    assert collect(store, keep_runs=1, grace_seconds=0) == said
    assert said.bytes == sum(said.removed.values())


def test_what_is_young_stays_though_nothing_needs_it(store: Path) -> None:
    shutil.rmtree(store / "models")
    before = {kind: names(store, kind) for kind in KINDS}
    run = oldest_run(store)
    os.utime(run / "config.json")  # all others were started long ago
    collect(store, keep_runs=0)
    assert {kind: names(store, kind) for kind in KINDS} == before | {"runs": [run.name]}
    check_whole(store)


def test_a_run_that_is_training_stays_with_all_it_needs(store: Path) -> None:
    shutil.rmtree(store / "models")
    oldest = oldest_run(store)
    with locked(oldest / "lock", "refuse"):
        collect(store, keep_runs=0, grace_seconds=0)
    run = Run.open(oldest)
    assert names(store, "runs") == [oldest.name]
    assert names(store, "datasets") == [run.dataset_folder.name]
    check_whole(store)


def test_a_run_that_cannot_say_what_it_needs_stops_gc_only_if_it_stays(store: Path) -> None:
    shutil.rmtree(store / "models")
    _, run, *_ = sorted((store / "runs").iterdir(), key=lambda run: (run / "config.json").stat().st_mtime)
    for content in ("{", '{"identity": {"format_version": 99}}'):
        (run / "config.json").write_text(content)
        before = {kind: names(store, kind) for kind in KINDS}
        with pytest.raises(StoreError, match=rf"{run.name}/config.json (is damaged|has format version 99)"):
            collect(store, keep_runs=6, grace_seconds=0)
        assert {kind: names(store, kind) for kind in KINDS} == before
    os.utime(run / "config.json", (0, 0))
    collect(store, keep_runs=5, grace_seconds=0)
    assert run.name not in names(store, "runs")
    check_whole(store)


def test_while_text_is_tokenized_nothing_is_removed(store: Path) -> None:
    shutil.rmtree(store / "models")
    before = {kind: names(store, kind) for kind in KINDS}
    with store_locked(store, shared=True), pytest.raises(RunError, match=r"^store .* is in use by another process"):
        collect(store, keep_runs=0, grace_seconds=0)
    assert {kind: names(store, kind) for kind in KINDS} == before


def test_what_was_wanted_lately_is_young(store: Path, original: Path) -> None:
    """A dataset that was made long ago, and is found whole by a command that is about to train on it."""
    shutil.rmtree(store / "models")
    for path in [*store.glob("*/*/manifest.json"), *store.glob("*/*")]:
        os.utime(path, (1e9, 1e9))
    prepared = prepare(tiny_config(original.parent / "corpus-0", store))
    assert prepared.dataset.chunks_made == 0
    collect(store, keep_runs=0)
    assert names(store, "datasets") == [prepared.dataset.id]
    assert list(problems(prepared.dataset.folder)) == []


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pruned=st.sets(st.integers(0, 2)), gone=st.sets(st.integers(0, 5)), keep_runs=st.integers(0, 6))
def test_all_that_is_reached_verifies_and_a_second_gc_removes_nothing(
    original: Path, tmp_path_factory: pytest.TempPathFactory, pruned: set[int], gone: set[int], keep_runs: int
) -> None:
    store = copied(original, tmp_path_factory.mktemp("law") / "store")
    everything = versions(store, "lm")
    kept = {version.receipt()["run"] for number, version in enumerate(everything) if number not in pruned}
    kept |= {Path(version.receipt()["origin"]["path"]).parts[1] for version in everything[1:]}
    for number in pruned:
        remove(everything[number].folder)
    for number in gone:
        if (run := sorted((store / "runs").iterdir())[number - 6 + len(names(store, "runs"))]).name not in kept:
            remove(run)
    collect(store, keep_runs=keep_runs, grace_seconds=0)
    check_whole(store)
    assert len(names(store, "runs")) >= min(keep_runs, 6 - len(gone))
    assert collect(store, keep_runs=keep_runs, grace_seconds=0).removed == {}


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child starts no thread
def test_a_kill_anywhere_leaves_a_whole_store_and_the_next_gc_ends_it(store: Path, tmp_path: Path) -> None:
    remove(versions(store, "lm")[0].folder)
    write, ended = 0, False
    while not ended:
        write += 7
        copy = copied(store, tmp_path / str(write))
        ended = ends(partial(collect, copy, keep_runs=0, grace_seconds=0), write, REMOVALS)
        check_whole(copy)
        collect(copy, keep_runs=0, grace_seconds=0)
        check_whole(copy)
        assert list(copy.rglob(".tmp-*")) == []
        assert collect(copy, keep_runs=0, grace_seconds=0).removed == {}
    assert write > 14


def test_a_clock_that_jumped_makes_nothing_go_that_is_reached(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back: all is dated later than now, and stays. Forward: what is reached stays, as if there were no grace time."""
    before, now = {kind: names(store, kind) for kind in KINDS}, clock.now()
    for kind in KINDS:
        for folder in (store / kind).iterdir():
            os.utime(folder / ("config.json" if kind == "runs" else "manifest.json"), (now, now))
    monkeypatch.setattr(clock, "now", lambda: now - 10 * 86_400)
    assert collect(store, keep_runs=0).removed == {}
    monkeypatch.setattr(clock, "now", lambda: now + 10 * 86_400)
    assert collect(store, keep_runs=0).removed
    assert names(store, "datasets") == before["datasets"]
    for version in versions(store, "lm"):
        assert list(check_receipt(version)) == []
