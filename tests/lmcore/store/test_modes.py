"""Every file of a store has the mode that the umask gives, whatever the libraries that wrote it think."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lmcore.model.export import export
from lmcore.model.generate import write_texts
from lmcore.registry.registry import add_version
from lmcore.report.report import report
from lmcore.store.artifacts import write_artifact
from tests.conftest import prepare, tiny_config, train_and_evaluate, write_corpus

Umask = Callable[[int], int]


@pytest.fixture
def umask() -> Iterator[Umask]:
    before = os.umask(0)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o002, 0o664, 0o775)])
def test_every_file_of_a_run_and_a_version(
    tmp_path: Path, umask: Umask, mask: int, file_mode: int, folder_mode: int
) -> None:
    check_modes(tmp_path, umask, mask, file_mode, folder_mode)


def test_they_stay_private_where_the_umask_says_so(tmp_path: Path, umask: Umask) -> None:
    check_modes(tmp_path, umask, 0o077, 0o600, 0o700)


def check_modes(folder: Path, umask: Umask, mask: int, file_mode: int, folder_mode: int) -> None:
    umask(mask)
    config = tiny_config(write_corpus(folder / "corpus", 60), folder / "store", checkpoint_every=2, tensorboard=True)
    prepared = prepare(config)
    made = train_and_evaluate(prepared, prepared.run())
    export(made.training, made.evaluation)
    report(made.training, made.evaluation, made.blocks, config.sample, write_texts)
    add_version(prepared.store, "ja", made.run, {"promoted": True})
    modes = {path.relative_to(folder): path.stat().st_mode & 0o777 for path in prepared.store.rglob("*")}
    wanted = {path: folder_mode if (folder / path).is_dir() else file_mode for path in modes}
    assert {path for path in modes if modes[path] != wanted[path]} == set()
    names = {path.name for path in modes}
    assert {"model.safetensors", "optimizer.safetensors", "random.safetensors", "index.sqlite"} <= names
    assert {"report.png", "receipt.json", "train.arrow", "tokenizer.json", "metrics.jsonl"} <= names


def test_a_copy_does_not_keep_the_mode_of_its_source(tmp_path: Path, umask: Umask) -> None:
    umask(0o022)
    with write_artifact(tmp_path / "made", lambda: {}) as folder:
        (folder / "script").write_text("x")
        (folder / "script").chmod(0o700)
    assert (tmp_path / "made/script").stat().st_mode & 0o777 == 0o644


def test_what_is_linked_from_elsewhere_keeps_its_mode(tmp_path: Path, umask: Umask) -> None:
    umask(0o077)
    (tmp_path / "export").write_text("weights")
    (tmp_path / "export").chmod(0o644)
    with write_artifact(tmp_path / "made", lambda: {}) as folder:
        os.link(tmp_path / "export", folder / "export")
    assert (tmp_path / "export").stat().st_mode & 0o777 == 0o644
