"""A corpus that is written to while it is read: what is trained on is what the manifest says, and the rest is new.

The writers are threads that really change the files, where it matters in the middle of a reading.
"""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from lmcore import clock
from lmcore.corpus import readers
from lmcore.corpus.listing import open_corpus
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import StoreError
from lmcore.model.evaluate import evaluate
from lmcore.model.export import export
from lmcore.registry.registry import add_version
from lmcore.retraining.new_documents import split_by_age
from lmcore.runs.prepare import prepare_run
from lmcore.runs.seen_documents import SeenDocuments
from lmcore.settings.config import RunConfig
from lmcore.store.artifacts import read_manifest
from lmcore.store.files import hash_text
from lmcore.tokenizer.tokenizer import TokenizerInfo
from lmcore.training.train import train
from lmcore.upkeep.verify import check_receipt
from tests.conftest import Prepared, tiny_config, wait_until, write_corpus

Change = Callable[[Path], None]


class Written:
    """A corpus of two files, a store, and every content that a file has had."""

    def __init__(self, folder: Path, tokenizer: TokenizerInfo) -> None:
        self.folder = folder / "corpus"
        own = shutil.copytree(tokenizer.folder, folder / "store" / "tokenizers" / tokenizer.id)
        self.tokenizer = TokenizerInfo.open(own)
        config = tiny_config(write_corpus(self.folder, 300), folder / "store")
        small = config.corpus.model_copy(update={"chunk_bytes": 2000, "validation_fraction": 0.1})
        self.config: RunConfig = config.model_copy(update={"corpus": small})
        self.file = self.folder / "written.txt"
        self.contents: dict[str, bytes] = {}
        self.write(lines("first", 500))
        self.keep(self.folder / "text.txt")

    def write(self, content: bytes) -> None:
        self.file.write_bytes(content)
        self.keep(self.file)

    def keep(self, file: Path) -> None:
        content = file.read_bytes()
        self.contents[blake3(content).hexdigest(16)] = content

    def dataset(self, between: Callable[[], None] = lambda: None) -> Dataset:
        """The dataset of the corpus; ``between`` is called between scan and read."""
        corpus, store = open_corpus(self.config)
        between()
        return tokenize(self.config.corpus, corpus, self.tokenizer, store)

    def assert_true(self, dataset: Dataset) -> None:
        """The dataset holds what stood in the files when they had the hashes in its manifest, and nothing else."""
        manifest = read_manifest(dataset.folder)
        expected = {
            hash_text(line)
            for row in manifest["inputs"]
            for line in self.contents[row["blake3"]].splitlines()
            if line.decode(errors="ignore").encode() == line != b""
        }
        assert document_hashes(dataset.folder) == expected
        assert manifest["ledger"]["unaccounted_bytes"] == 0
        assert manifest["ledger"]["source_bytes"] == sum(
            len(self.contents[row["blake3"]]) for row in manifest["inputs"]
        )


def document_hashes(dataset: Path) -> set[int]:
    return {value for split in SeenDocuments.from_dataset(dataset) for value in split.tolist()}


def lines(word: str, count: int) -> bytes:
    return "".join(f"{word} {number} 東京の学習データ\n" for number in range(count)).encode()


@pytest.fixture
def written(tmp_path: Path, prepared: Prepared) -> Written:
    return Written(tmp_path, prepared.tokenizer)


def appended(file: Path) -> None:
    with open(file, "ab") as stream:
        stream.write(lines("more", 100))


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def replaced(file: Path) -> None:
    (file.parent / ".new").write_bytes(lines("other", 300))
    os.replace(file.parent / ".new", file)


def overwritten(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.seek(-len(lines("first", 1)) - 2, os.SEEK_END)  # where the last line begins: it has three digits
        stream.write(b"F")


def added(file: Path) -> None:
    (file.parent / "added.txt").write_bytes(lines("added", 50))


EDITS = [appended, truncated, replaced, overwritten, Path.unlink]
CHANGES = [*EDITS, added]


def test_a_file_that_is_added_after_the_scan_is_read_by_the_next_start(written: Written) -> None:
    def between() -> None:
        added(written.file)
        written.keep(written.folder / "added.txt")

    dataset = written.dataset(between)
    written.assert_true(dataset)
    assert not dataset.corpus_changed
    again = written.dataset()
    written.assert_true(again)
    assert len(document_hashes(again.folder)) == len(document_hashes(dataset.folder)) + 50


@pytest.mark.parametrize("change", EDITS)
def test_a_file_that_changes_after_the_scan_is_read_as_it_is_now(written: Written, change: Change) -> None:
    def between() -> None:
        change(written.file)
        for file in written.folder.iterdir():
            written.keep(file)

    dataset = written.dataset(between)
    written.assert_true(dataset)
    assert dataset.corpus_changed
    assert dataset.ledger_summary().endswith("0 unaccounted, the corpus was changed meanwhile")
    with pytest.raises(StoreError, match="the corpus was changed while it was made"):
        dataset.verify()
    again = written.dataset()
    assert (again.id, again.chunks_made, again.corpus_changed) == (dataset.id, 0, False)
    again.verify()


@contextmanager
def changed_amid_the_reading(file: Path, change: Change, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Another thread changes the file when its first bytes have been read, and reading goes on after that."""
    real, began, done = readers.open_stored, threading.Event(), threading.Event()

    def write() -> None:
        assert began.wait(60)
        change(file)
        done.set()

    class Stream:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def read(self, size: int) -> bytes:
            block: bytes = self.stream.read(size)
            began.set()
            assert done.wait(60)
            return block

    @contextmanager
    def open_stored(path: str) -> Iterator[Any]:
        with real(path) as stream:
            yield Stream(stream) if path == str(file) else stream

    writer = threading.Thread(target=write)
    writer.start()
    with monkeypatch.context() as patch:
        patch.setattr(readers, "open_stored", open_stored)
        patch.setattr(readers, "_READ_BYTES", 4096)
        yield
    writer.join()


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_during_the_read_is_what_the_manifest_says(
    written: Written, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    with changed_amid_the_reading(written.file, change, monkeypatch):
        dataset = written.dataset()
    for file in written.folder.iterdir():
        written.keep(file)
    written.assert_true(dataset)
    is_noticed = change in (appended, truncated, overwritten)  # an open file that lost its name keeps its content
    assert "changed_while_read" not in dataset.skipped
    assert dataset.corpus_changed == is_noticed
    later = written.dataset()
    written.assert_true(later)
    _, news = split_by_age(later, dataset.folder)
    there = document_hashes(later.folder) - document_hashes(dataset.folder)
    assert news.new_documents + news.new_validation_documents == len(there)
    assert bool(there) == (change in (replaced, added))


def test_with_a_settle_time_a_file_that_changed_since_the_scan_is_left_for_the_next_start(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also long after the scan, while somebody copies a file."""
    settling = written.config.corpus.model_copy(update={"settle_seconds": 60})
    written.config = written.config.model_copy(update={"corpus": settling})
    now = clock.now()
    for file in written.folder.iterdir():
        os.utime(file, (now - 1000, now - 1000))

    def half_an_hour_later() -> None:
        monkeypatch.setattr(clock, "now", lambda: now + 1800)
        written.file.write_bytes(lines("half a copy", 10))
        os.utime(written.file, (now + 1795, now + 1795))

    dataset = written.dataset(half_an_hour_later)
    written.assert_true(dataset)
    assert (dataset.skipped, dataset.corpus_changed) == ({"unsettled": 1}, True)


def test_whatever_is_written_meanwhile_the_manifest_is_true(written: Written) -> None:
    """A writer that never rests, beside one reading after another."""
    rests = threading.Event()

    def write() -> None:
        number = 0
        while not rests.is_set():
            number += 1
            content = lines(f"version {number}", 100 + number % 7 * 50)
            written.contents[blake3(content).hexdigest(16)] = content
            (written.folder / ".new").write_bytes(content)
            os.replace(written.folder / ".new", written.file)
            with open(written.file, "r+b", buffering=0) as file:  # and in place, one byte at once
                file.write(b"V")
                written.contents[blake3(b"V" + content[1:]).hexdigest(16)] = b"V" + content[1:]

    def written_anew() -> None:
        known = len(written.contents)
        wait_until(lambda: len(written.contents) > known + 3, "another content")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        datasets = [written.dataset(written_anew) for _ in range(6)]
    finally:
        rests.set()
        writer.join()
    for dataset in datasets:
        written.assert_true(dataset)
        assert dataset.corpus_changed


def test_a_change_amid_the_training_is_no_part_of_it_and_verify_tells(written: Written) -> None:
    dataset = written.dataset()
    run = prepare_run(written.config, dataset, written.tokenizer, dataset.store)
    untouched = [str(path) for path in written.folder.iterdir() if path != written.file]
    writers = [threading.Thread(target=change, args=[written.file]) for change in (appended, overwritten, added)]

    def write_once() -> bool:
        if writers:
            writer = writers.pop()
            writer.start()
            writer.join()
        return False

    training = train(run, write_once)
    assert not writers
    export(training, evaluate(run, training.checkpoint))
    version = add_version(dataset.store, "ja", run, {"promoted": True})
    files = version.receipt()["corpus"]["files"]
    assert files[str(written.file)] == blake3(lines("first", 500)).hexdigest(16)
    [problem] = check_receipt(version)
    assert problem.startswith(f"corpus: {written.file} has changed: was {files[str(written.file)]}, is ")
    assert sorted(files) == sorted([*untouched, str(written.file)])
    _, news = split_by_age(written.dataset(), dataset.folder)
    assert news.new_documents + news.new_validation_documents == 100 + 50 + 1  # and the line that was written over
