"""LM_DATA_ROOTS holds against paths that nobody would write: the kernel says what was opened."""

import ctypes
import os
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmcore.cli.options import store_folder
from lmcore.corpus.document_query import DocumentQuery
from lmcore.corpus.listing import check_paths, open_corpus
from lmcore.corpus.remote import open_stored
from lmcore.corpus.scan import scan
from lmcore.errors import LMError
from lmcore.registry.versions import find, models
from lmcore.settings.config import CorpusConfig, RunConfig, TokenizerConfig, TrainConfig
from lmcore.store.allowed_paths import VARIABLE
from lmcore.store.hub import resolve
from lmcore.store.layout import prepare_store
from tests.lmcore.store.test_allowed_paths import link

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")

_IN_OPEN, _IN_NONBLOCK = 0x20, 0x800
_EVENT = struct.Struct("iIII")
_PATHS_AT_ONCE = 20
_EXAMPLES = int(os.environ.get("LM_FUZZ_EXAMPLES", "40"))
"""500 are 10,000 paths, and take a minute."""


class Opened:
    """What was opened in some folders, the folders themselves included (inotify)."""

    def __init__(self, folders: list[Path]) -> None:
        self._libc = ctypes.CDLL(None)
        self._queue = self._libc.inotify_init1(_IN_NONBLOCK)
        self._folders = {self._libc.inotify_add_watch(self._queue, bytes(each), _IN_OPEN): each for each in folders}

    def paths(self) -> set[str]:
        """The paths since the last call."""
        found, events = set(), b""
        with suppress(BlockingIOError):
            while True:
                events += os.read(self._queue, 65536)
        while events:
            watch, _, _, length = _EVENT.unpack_from(events)
            name = events[_EVENT.size : _EVENT.size + length].rstrip(b"\0").decode()
            found.add(str(self._folders[watch] / name))
            events = events[_EVENT.size + length :]
        return found

    def close(self) -> None:
        os.close(self._queue)


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Opened]]:
    """data, the only root, beside what is none, with links of every kind between them; and what is opened outside."""
    for folder in ("data/inner", "data-evil", "other/deep", "other/models/lm"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "text.txt").write_text("0123456789abcdef\nnobody may read this\n")
    link(tmp_path)
    prepare_store(tmp_path / "data/store")
    monkeypatch.setenv(VARIABLE, f"{tmp_path / 'data'}:http://127.0.0.1:9/data")
    monkeypatch.chdir(tmp_path / "data")
    monkeypatch.setenv("HOME", str(tmp_path / "other"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    outside = [tmp_path, *(tmp_path / name for name in ("data-evil", "other", "other/deep", "other/models"))]
    opened = Opened(outside)
    yield tmp_path, opened
    opened.close()


def _corpus(**settings: object) -> RunConfig:
    return RunConfig(corpus=CorpusConfig.model_validate({"paths": ["inner"], **settings}), store=Path("store"))


_WAYS: list[Callable[[str], object]] = [
    lambda path: open_corpus(_corpus(paths=[path])),
    lambda path: open_corpus(_corpus(sources={"more": [path]})),
    lambda path: open_corpus(_corpus(validation_paths=[path])),
    lambda path: open_corpus(_corpus(exclude_documents=[path])),
    lambda path: open_corpus(_corpus().model_copy(update={"tokenizer": TokenizerConfig(source=path)})),
    lambda path: open_corpus(_corpus().model_copy(update={"train": TrainConfig(init_from=path)})),
    lambda path: check_paths(_corpus(paths=[path])),
    lambda path: scan(CorpusConfig(paths=[path])),
    lambda path: open_stored(path).read(),
    lambda path: DocumentQuery(path).cut({}),
    lambda path: find(Path("store"), path, "folder", "run", "dataset", "version"),
    lambda path: resolve(path, "tokenizer.source", "tokenizer", ("*",), LMError),
    lambda path: models(store_folder(path)),
    lambda path: prepare_store(Path(path), creates=False),
]
_NAMES = [
    "data",
    "data-evil",
    "other",
    "deep",
    "models",
    "lm",
    "inner",
    "store",
    "loop",
    "out",
    "up",
    "home",
    "text.txt",
]
_NAMES.extend(
    ["secret.txt", "..", "..", ".", "", "~", "*", "**", "?ut", "[d-u]*", "*.txt", "\0", "%2e%2e", "%252e%252e"]
)
_NAMES.extend(["..%2f", "..;", "..?a=b", "..#", "\\..", "日本", "file:", "data::file:"])
_STARTS = ["", "/", "~/", "{0}/", "{0}/data/", "file://{0}/", "file://{0}/data/", "local://{0}/data/../other/"]
_STARTS += ["http://127.0.0.1:9/data/", "stdlib:", "simplecache::file://{0}/", "\0"]
_ENDS = st.lists(st.sampled_from(_NAMES), max_size=6)
_PATHS = st.builds(lambda start, names: start + "/".join(names), st.sampled_from(_STARTS), _ENDS)


# The tree is only read. A failure is not made smaller: that takes minutes, and it names the path.
@settings(max_examples=_EXAMPLES, phases=[Phase.generate], suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(_WAYS), _PATHS), min_size=_PATHS_AT_ONCE, max_size=_PATHS_AT_ONCE))
def test_no_path_opens_anything_outside(
    tree: tuple[Path, Opened], asked: list[tuple[Callable[[str], object], str]]
) -> None:
    folder, opened = tree
    for ask, path in asked:
        with suppress(LMError, OSError, ValidationError):
            ask(path.format(folder))
        assert opened.paths() <= {str(folder / "data")}, path
