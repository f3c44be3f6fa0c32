"""Which files are read, and what a corpus is called."""

import os
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from lmcore import clock
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.listing import Corpus, corpus_files, open_corpus
from lmcore.corpus.scan import scan
from lmcore.errors import ConfigError, CorpusError, is_transient
from lmcore.settings.config import CorpusConfig, DatasetConfig, RunConfig


def names(*paths: Path, **settings: object) -> list[str]:
    config = CorpusConfig.model_validate({"paths": [str(path) for path in paths], **settings})
    return sorted(os.path.basename(file.path) for file in scan(config).files)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (
        "a.txt",
        "b.jsonl.gz",
        "c.bin",
        ".hidden.txt",
        "sub/d.md",
        ".git/e.txt",
        "test_x/f.txt",
        "日本 語/g.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    return tmp_path


def test_a_folder_is_read_through_without_hidden_excluded_and_unnamed_files(tree: Path) -> None:
    assert names(tree, exclude=["test*"]) == ["a.txt", "b.jsonl.gz", "d.md", "g.txt"]
    assert names(tree, include=["*.bin"]) == ["c.bin"]
    config = CorpusConfig(paths=[str(tree)], exclude=["test*"])
    assert scan(config).unread.files == 2


def test_links_are_followed_once_and_keep_their_names(tree: Path) -> None:
    (tree / "loop").symlink_to(tree)
    (tree / "blob").write_text("{}")
    (tree / "link.jsonl").symlink_to(tree / "blob")
    (tree / "broken.txt").symlink_to(tree / "nowhere")
    assert names(tree, exclude=["test*"]) == ["a.txt", "b.jsonl.gz", "d.md", "g.txt", "link.jsonl"]


def test_globs_files_and_repeats(tree: Path) -> None:
    assert names(tree / "*.txt") == ["a.txt"]
    assert names(tree / "**" / "*.md", tree / "a.txt", tree / "a.txt") == ["a.txt", "d.md"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere", "nowhere does not exist"),
        ("*.none", "does not exist"),
        ("c.bin", r"c.bin matches none of corpus.include .*--corpus.include '\*.bin'"),
        ("empty", "no file in .*empty matches"),
        ("pipe.txt", "neither a file nor a folder"),
        ("dangling.txt", "does not exist"),
        ("self.txt", "does not exist"),
    ],
)
def test_what_cannot_be_read_is_named(tree: Path, path: str, message: str) -> None:
    (tree / "empty").mkdir()
    os.mkfifo(tree / "pipe.txt")
    (tree / "dangling.txt").symlink_to("nowhere")
    (tree / "self.txt").symlink_to("self.txt")
    with pytest.raises(CorpusError, match=message):
        scan(CorpusConfig(paths=[str(tree / path)]))


def test_no_path_at_all_is_an_error() -> None:
    with pytest.raises(CorpusError, match=r"corpus.paths is empty"):
        scan(CorpusConfig())


def test_the_home_of_nobody_does_not_exist() -> None:
    with pytest.raises(CorpusError, match="~nosuchuser/x does not exist"):
        scan(CorpusConfig(paths=["~nosuchuser/x"]))


@pytest.mark.parametrize("weights", [{"corpus": 1, "wikipedia": 1}, {"wiki": 1}])
def test_sources_that_are_not_there_are_named_before_anything_is_read(tree: Path, weights: dict[str, float]) -> None:
    corpus = CorpusConfig(paths=[str(tree)], sources={"wiki": [str(tree / "sub")]})
    config = RunConfig(corpus=corpus, dataset=DatasetConfig(weights=weights), store=tree / "store")
    with pytest.raises(ConfigError, match=r"sources, corpus, wiki: missing are .*unknown"):
        open_corpus(config)
    assert not (tree / "store").exists()


def test_an_empty_path_is_not_the_current_folder(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    with pytest.raises(CorpusError, match="one of the paths is empty"):
        scan(CorpusConfig(paths=[""]))


def test_a_read_error_that_may_pass_is_an_error_that_names_the_file(tree: Path) -> None:
    (tree / "mem.txt").symlink_to("/proc/self/mem")  # permissions do not stop root; this read fails for everybody
    with pytest.raises(OSError, match=r"cannot be read: .*mem.txt") as raised:
        scan(CorpusConfig(paths=[str(tree)]))
    assert is_transient(raised.value)


class _Refusing(HashIndex):
    """An index that cannot read a.txt."""

    def __init__(self, error: type[OSError]) -> None:
        super().__init__(None)
        self._error = error

    def size_and_hash(self, path: str, rehash: bool = False) -> tuple[int, str]:
        if path.endswith("a.txt"):
            raise self._error(1, "no")
        return super().size_and_hash(path, rehash)


@pytest.mark.parametrize("error", [PermissionError, FileNotFoundError, IsADirectoryError])
def test_an_unreadable_file_costs_itself(tree: Path, error: type[OSError]) -> None:
    config = CorpusConfig(paths=[str(tree)])
    found = scan(config, _Refusing(error))
    assert [(skip.path, skip.reason) for skip in found.skipped] == [(str(tree / "a.txt"), "unreadable")]
    assert Corpus.from_scan(found, config).listing != Corpus.from_scan(scan(config), config).listing
    with pytest.raises(CorpusError, match=r"a.txt: unreadable"):
        scan(config.model_copy(update={"on_bad_input": "fail"}), _Refusing(error))


@pytest.fixture
def closed() -> Iterator[Path]:
    """A folder with a file and a folder that may not be read, seen as somebody whom permissions stop."""
    with TemporaryDirectory() as name:  # tmp_path lies in a folder of its owner's own
        folder = Path(name)
        for path in ("open.txt", "closed.txt", "closed/inside.txt"):
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_text("text")
        folder.chmod(0o755)
        (folder / "closed.txt").chmod(0)
        (folder / "closed").chmod(0)
        owner = os.geteuid()
        if owner == 0:
            os.seteuid(65534)  # nobody
        try:
            yield folder
        finally:
            os.seteuid(owner)
            (folder / "closed").chmod(0o755)


def test_what_may_not_be_read_costs_itself(closed: Path) -> None:
    config = CorpusConfig(paths=[str(closed)])
    found = scan(config)
    assert [file.path for file in found.files] == [str(closed / "open.txt")]
    skipped = [(skip.path, skip.reason) for skip in found.skipped]
    assert skipped == [(str(closed / "closed"), "unreadable"), (str(closed / "closed.txt"), "unreadable")]
    with pytest.raises(CorpusError, match="closed: unreadable"):
        scan(config.model_copy(update={"on_bad_input": "fail"}))


def test_a_rename_changes_the_listing_and_not_the_id(tree: Path) -> None:
    config = CorpusConfig(paths=[str(tree)])
    before = Corpus.from_scan(scan(config), config)
    os.rename(tree / "a.txt", tree / "z.txt")
    after = Corpus.from_scan(scan(config), config)
    assert before.id == after.id
    assert before.listing != after.listing


def test_what_is_read_differently_is_another_corpus(tree: Path) -> None:
    config = CorpusConfig(paths=[str(tree)])
    ids = {Corpus.from_scan(scan(config), config).id}
    for change in ({"document": "file"}, {"text_field": "body"}, {"validation_fraction": 0.1}):
        other = config.model_copy(update=change)
        ids.add(Corpus.from_scan(scan(other), other).id)
    os.rename(tree / "a.txt", tree / "a.md")
    ids.add(Corpus.from_scan(scan(config), config).id)
    (tree / "sub" / "d.md").write_text("more")
    ids.add(Corpus.from_scan(scan(config), config).id)
    assert len(ids) == 6


def test_validation_files_are_not_trained_on(tree: Path) -> None:
    found = scan(CorpusConfig(paths=[str(tree)], validation_paths=[str(tree / "a.txt")]))
    assert [Path(file.path).name for file in found.validation_files] == ["a.txt"]
    assert "a.txt" not in {Path(file.path).name for file in found.files}


def test_a_corpus_that_changes_while_it_is_prepared_is_an_error(tree: Path) -> None:
    config = CorpusConfig(paths=[str(tree)])
    corpus = Corpus.from_scan(scan(config), config)
    (tree / "a.txt").write_text("changed")
    with pytest.raises(CorpusError, match="changed while it was being prepared"):
        corpus_files(corpus, config, tree / "store", HashIndex(None))


def test_one_start_scans_once(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RunConfig(corpus=CorpusConfig(paths=[str(tree)], exclude=["store"]), store=tmp_path / "store")
    corpus, store = open_corpus(config)
    expected = scan(config.corpus)
    monkeypatch.setattr("lmcore.corpus.listing.scan", lambda *_: pytest.fail("scanned again"))
    assert corpus_files(corpus, config.corpus, store, HashIndex(store)) == expected
    (store / f"inputs/files-{corpus.id}.json").write_text('{"files": {}}')
    monkeypatch.setattr("lmcore.corpus.listing.scan", scan)
    assert corpus_files(corpus, config.corpus, store, HashIndex(store)) == expected


def test_a_name_that_is_no_utf8_costs_its_file(tree: Path) -> None:
    (tree / os.fsdecode("日本.txt".encode("shift_jis"))).write_text("text")
    [skip] = scan(CorpusConfig(paths=[str(tree)])).skipped
    assert skip.reason == "name_is_no_utf8"
    assert r"\x93\xfa\x96{.txt" in skip.path


def test_a_pipe_in_a_folder_is_passed_over_and_ledgered(tree: Path) -> None:
    os.mkfifo(tree / "pipe.txt")
    assert "pipe.txt" not in names(tree)
    [skip] = scan(CorpusConfig(paths=[str(tree)])).skipped
    assert (skip.path, skip.reason) == (str(tree / "pipe.txt"), "not_a_file")


def test_a_name_that_looks_like_a_glob_is_a_name(tree: Path) -> None:
    (tree / "[a].txt").write_text("text")
    assert names(tree / "[a].txt") == ["[a].txt"]


def test_stdlib_is_the_folder_of_the_running_python() -> None:
    config = CorpusConfig(paths=["stdlib:"], include=["this.py"], exclude=["site-packages"])
    assert [file.path for file in scan(config).files] == [os.path.join(sysconfig.get_path("stdlib"), "this.py")]


def test_suffixes_may_be_written_in_capitals() -> None:
    file = SourceFile("/x/O.JSONL.GZ", 1, "")
    assert (file.kind, file.compression) == ("jsonl", "gz")


def test_a_file_that_is_being_written_is_left_for_the_next_time(tree: Path) -> None:
    now = time.time()
    os.utime(tree / "a.txt", (now - 5, now - 5))
    for name in ("b.jsonl.gz", "sub/d.md", "test_x/f.txt"):
        os.utime(tree / name, (now - 3_600, now - 3_600))
    os.utime(tree / "日本 語/g.txt", (now + 10**6, now + 10**6))  # by a clock that was wrong
    config = CorpusConfig(paths=[str(tree)], settle_seconds=60)
    found = scan(config)
    assert [(skip.path, skip.reason) for skip in found.skipped] == [(str(tree / "a.txt"), "unsettled")]
    assert sorted(os.path.basename(file.path) for file in found.files) == ["b.jsonl.gz", "d.md", "f.txt", "g.txt"]


def test_a_file_that_settles_meanwhile_does_not_change_the_corpus(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CorpusConfig(paths=[str(tree)], settle_seconds=60)
    now = time.time()
    os.utime(tree / "sub/d.md", (now - 3_600, now - 3_600))
    run = RunConfig(corpus=config, store=tree.parent / f"{tree.name}-store")
    corpus, store = open_corpus(run)
    monkeypatch.setattr(clock, "now", lambda: now + 3_600)
    found = corpus_files(corpus, config, store, HashIndex(store))
    assert [os.path.basename(file.path) for file in found.files] == ["d.md"]
    assert len(scan(config).files) == 5
