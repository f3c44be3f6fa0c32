"""What the system does not let us read is never taken for damage: nothing is set aside, removed or made again."""

import builtins
import errno
import io
import os
import resource
import shutil
import sqlite3
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from lmcore.corpus.hash_index import HashIndex
from lmcore.dataset.audit import problems
from lmcore.dataset.shards import SPLITS, Shard, shard_path, write_shard
from lmcore.errors import is_transient
from lmcore.registry.versions import champion, find_version
from lmcore.runs.initial_model import InitialModel
from lmcore.runs.run import Run, TrainingResult, finished_training, newest_checkpoint
from lmcore.runs.scores import DocumentScores
from lmcore.store.artifacts import find_artifact, verify_artifact
from lmcore.store.locks import locked
from tests.conftest import two_versions

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")

Action = Callable[[Path], object]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with two versions. No test changes it, which is what is tested."""
    return two_versions(tmp_path_factory.mktemp("made"))


def one(store: Path, pattern: str) -> Path:
    return sorted(store.glob(pattern))[0]


def scores(store: Path) -> object:
    path = store / "scores.arrow"
    empty = np.zeros(0, np.int64)
    names = np.array([], np.str_)
    if not path.exists():
        DocumentScores("w", "t", 8, empty.astype(np.uint64), empty * 1.0, empty, empty, names, names).save(path)
    return path


ACTIONS: dict[str, Action] = {
    "sealed folder": lambda store: verify_artifact(one(store, "shards/*")),
    "is it whole": lambda store: find_artifact(one(store, "tokenizers/*")),
    "shard": lambda store: Shard(shard_path(one(store, "shards/*"), SPLITS[0])),
    "record": lambda store: TrainingResult.load(one(store, "runs/*")),
    "run": lambda store: Run.open(one(store, "runs/*")),
    "finished training": lambda store: finished_training(Run.open(one(store, "runs/*"))),
    "checkpoint": lambda store: newest_checkpoint(one(store, "runs/*") / "checkpoints"),
    "dataset": lambda store: list(problems(one(store, "datasets/*"))),
    "champion": lambda store: champion(store, "lm"),
    "receipt": lambda store: find_version(store, "lm/v0001").receipt(),
    "origin": lambda store: InitialModel.find(str(one(store, "runs/*") / "model")),
    "scores": lambda store: DocumentScores.load(store / "scores.arrow"),
}


@contextmanager
def unchanged(store: Path) -> Iterator[None]:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}

    before = content()
    yield
    assert content() == before


@contextmanager
def no_more_files() -> Iterator[None]:
    """Every file descriptor that this process may have is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    taken = []
    try:
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("name", ACTIONS)
def test_too_many_open_files(store: Path, name: str) -> None:
    scores(store)
    with unchanged(store):
        with no_more_files(), pytest.raises(OSError, match="Too many open files") as raised:
            ACTIONS[name](store)
        assert raised.value.errno == errno.EMFILE
        assert is_transient(raised.value)
        ACTIONS[name](store)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.ENFILE])
@pytest.mark.parametrize("name", [name for name in ACTIONS if name != "shard"])  # pyarrow opens that by itself
def test_a_disk_in_trouble(store: Path, monkeypatch: pytest.MonkeyPatch, name: str, number: int) -> None:
    scores(store)

    def fail(path: object, *arguments: object, **options: object) -> None:
        raise OSError(number, os.strerror(number), path)

    with unchanged(store):
        with monkeypatch.context() as patched:
            patched.setattr(builtins, "open", fail)
            patched.setattr(io, "open", fail)
            with pytest.raises(OSError, match=os.strerror(number)) as raised:
                ACTIONS[name](store)
        assert is_transient(raised.value)


def in_child(action: Callable[[], object]) -> str:
    """What ``action`` raises in a fork of this process; empty if nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            action()
        except BaseException as error:
            os.write(writing, "".join(traceback.format_exception_only(error)).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        return said.read()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize("name", ACTIONS)
def test_another_user_s_file_is_named_with_its_owner(tmp_path: Path, store: Path, name: str) -> None:
    scores(store)
    copy = shutil.copytree(store, tmp_path / "copy")
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_uid == 0 and path != Path("/"):
            path.chmod(path.stat().st_mode | 0o055)
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o600)

    def read() -> None:
        _become_nobody()
        ACTIONS[name](copy)

    with unchanged(copy):
        said = in_child(read)
    assert said.startswith("PermissionError: [Errno 13] Permission denied"), said
    assert "for nobody: it belongs to root, mode 600" in said
    assert str(copy) in said


def _become_nobody() -> None:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_users_wait_for_each_other_s_locks_where_all_may_write() -> None:
    """The lock of a GPU lies in such a folder; in any other the owner is named."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "lock"
        Path(folder).chmod(0o1777)

        def lock() -> None:
            _become_nobody()
            with locked(path, "refuse"):
                pass

        with locked(path, "wait"):
            assert in_child(lock).startswith(f"lmcore.errors.RunError: {folder} is in use by process ")
        assert in_child(lock) == ""
        Path(folder).chmod(0o755)
        said = in_child(lock)
        assert said.startswith("PermissionError: [Errno 13] Permission denied for nobody: it belongs to root, mode 644")
        assert "users who share a store need a common group and umask 002" in said


def test_no_memory_to_map_a_shard(tmp_path: Path) -> None:
    tokens, row = np.zeros(100_000_000, np.uint16), np.array([0], np.int64)
    path = tmp_path / "train.arrow"
    lengths = np.array([len(tokens)])
    write_shard(path, tokens, lengths, row, row, row.astype(np.uint64), tokenizer_id="t", eos_id=0)
    del tokens

    def open_it() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 50_000_000, resource.RLIM_INFINITY))
        Shard(path)

    said = in_child(open_it)
    assert said.startswith("OSError: [Errno 12]"), said
    assert "damaged" not in said
    assert len(Shard(path).tokens) == 100_000_000


def test_a_limit_is_no_reason_to_forget_the_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("text")
    with HashIndex(tmp_path) as index:
        index.put("key", [1])
    with unchanged(tmp_path), no_more_files(), HashIndex(tmp_path) as index:
        assert index.get("key") is None
    assert "is not used" in caplog.text
    with HashIndex(tmp_path) as index:
        assert index.get("key") == [1]
        error = sqlite3.OperationalError("out of memory")
        error.sqlite_errorcode = sqlite3.SQLITE_NOMEM
        assert not index._give_up(tmp_path / "index.sqlite", error)
    assert (tmp_path / "index.sqlite").exists()
