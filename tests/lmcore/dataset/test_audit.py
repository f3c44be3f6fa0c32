"""A dataset is examined to the last byte, and exactly what is damaged is made again."""

import gzip
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmcore.corpus.document_query import DocumentQuery
from lmcore.corpus.listing import Corpus
from lmcore.corpus.scan import scan
from lmcore.dataset.audit import (
    ledger_by_file,
    problems,
    repair,
    skipped_pieces,
)
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.shards import Shard, write_shard
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import CorpusError, StoreError
from lmcore.settings.config import CorpusConfig
from lmcore.store.artifacts import MANIFEST, manifest_bytes, read_manifest
from lmcore.store.files import hash_file
from lmcore.store.layout import prepare_store
from lmcore.upkeep.forget import forget
from lmcore.upkeep.seen_by import seen_by
from tests.conftest import Prepared, Trained, write_corpus

Build = Callable[..., Dataset]


@pytest.fixture
def build(prepared: Prepared, tmp_path: Path) -> Build:
    """A dataset of many chunks and two bad lines, in a store that has the tokenizer."""
    store = prepare_store(tmp_path / "store")
    shutil.copytree(prepared.tokenizer.folder, store / "tokenizers" / prepared.tokenizer.id)
    corpus = write_corpus(tmp_path / "corpus", documents=500)
    with open(corpus / "text.txt", "ab") as file:
        file.write(b"bad \xff line\nlast bad \xfe line\n")

    def make(**settings: object) -> Dataset:
        config = CorpusConfig.model_validate({"paths": [str(corpus)], "chunk_bytes": 2000, **settings})
        return tokenize(config, Corpus.from_scan(scan(config), config), prepared.tokenizer, store)

    return make


def test_a_whole_dataset_has_no_problems(build: Build) -> None:
    assert list(problems(build().folder)) == []


@pytest.mark.parametrize("seed", range(12))
def test_every_flipped_byte_is_found_and_repaired(build: Build, seed: int) -> None:
    dataset = build()
    draw = random.Random(seed)
    files = sorted((dataset.folder.parent.parent / "shards").glob("*/*"))
    path = draw.choice(files)
    content = bytearray(path.read_bytes())
    content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
    path.write_bytes(content)
    [(chunk, problem)] = problems(dataset.folder)
    assert chunk == path.parent.name
    assert problem
    before = {path: path.stat().st_ino for path in files if path.parent.name != chunk}
    assert repair(dataset.folder) == [chunk]
    assert before == {path: path.stat().st_ino for path in files if path.parent.name != chunk}
    assert list(problems(dataset.folder)) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_flipped_byte_in_the_manifest_is_found(build: Build, seed: int) -> None:
    dataset = build()
    path = dataset.folder / "manifest.json"
    content = bytearray(path.read_bytes())
    content[random.Random(seed).randrange(len(content))] ^= 1
    path.write_bytes(content)
    assert [chunk for chunk, _ in problems(dataset.folder)] == [""]
    with pytest.raises(StoreError, match="Run the pipeline again"):
        repair(dataset.folder)


def test_what_the_corpus_no_longer_holds_cannot_be_repaired(build: Build, tmp_path: Path) -> None:
    dataset = build()
    next((tmp_path / "store" / "shards").glob("*/train.arrow")).unlink()
    (tmp_path / "corpus" / "text.txt").write_text("別の文\n" * 500)
    manifest = (dataset.folder / MANIFEST).read_bytes()
    with pytest.raises(CorpusError, match=r"no longer hold the text of [0-9a-f]{16}: the corpus changed since"):
        repair(dataset.folder)
    assert (dataset.folder / MANIFEST).read_bytes() == manifest


def wrong_but_sealed(dataset: Dataset) -> Path:
    """The folder of a chunk that was damaged before it was sealed."""
    folder = sorted((dataset.folder.parent.parent / "shards").iterdir())[0]
    (folder / "train.arrow").write_bytes(b"no shard")
    seal_again(folder)
    return folder


def test_repair_works_from_another_folder_and_beside_new_files(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(20):  # small files share chunks; one more would be packed with them
        (tmp_path / "corpus" / f"{number}.md").write_text(f"文書{number}\n")
    monkeypatch.chdir(tmp_path)
    dataset = build(paths=["corpus"])
    manifest = (dataset.folder / MANIFEST).read_bytes()
    chunks = [folder.name for folder in (tmp_path / "store" / "shards").iterdir()]
    for number in range(20, 30):
        (tmp_path / "corpus" / f"{number}.md").write_text(f"新しい文書{number}\n")
    monkeypatch.chdir("/")
    for chunk in chunks:
        (tmp_path / "store" / "shards" / chunk / "train.arrow").unlink()
    assert sorted(repair(dataset.folder)) == sorted(chunks)
    assert list(problems(dataset.folder)) == []
    assert (dataset.folder / MANIFEST).read_bytes() == manifest


def test_repair_that_cannot_make_a_chunk_again_leaves_it(build: Build, tmp_path: Path) -> None:
    dataset = build()
    folder = wrong_but_sealed(dataset)
    (tmp_path / "corpus").rename(tmp_path / "away")
    with pytest.raises(CorpusError, match="corpus does not exist"):
        repair(dataset.folder)
    assert (folder / "train.arrow").read_bytes() == b"no shard"
    (tmp_path / "away").rename(tmp_path / "corpus")
    assert repair(dataset.folder) == [folder.name]


def test_repair_says_so_when_the_manifest_is_what_is_wrong(build: Build) -> None:
    dataset = build()
    manifest = read_manifest(dataset.folder)
    manifest["chunks"][0]["train"]["tokens"] += 1
    manifest["splits"]["train"]["tokens"] += 1
    (dataset.folder / MANIFEST).write_bytes(manifest_bytes(manifest))
    with pytest.raises(StoreError, match=r"tokens, the manifest says .* Run the pipeline again"):
        repair(dataset.folder)
    assert build().id == dataset.id
    assert list(problems(dataset.folder)) == []


def test_the_pieces_that_were_left_out_are_kept_with_their_places(build: Build, tmp_path: Path) -> None:
    dataset = build()
    path = tmp_path / "corpus" / "text.txt"
    content = path.read_bytes()
    rows = list(skipped_pieces(dataset.folder))
    assert [row[3:] for row in rows] == [("invalid_utf8", b"bad \xff line"), ("invalid_utf8", b"last bad \xfe line")]
    assert all(content[offset : offset + length] == piece for _, offset, length, _, piece in rows)
    [row] = ledger_by_file(dataset.folder)
    assert (row["path"], row["documents"], row["skipped_pieces"]) == (str(path), 500, 2)
    assert row["document_bytes"] + row["separator_bytes"] + row["skipped_bytes"] == len(content)


def test_pieces_move_with_the_text_around_them(build: Build, tmp_path: Path) -> None:
    build()
    path = tmp_path / "corpus" / "text.txt"
    path.write_bytes("新しい始まり\n".encode() + path.read_bytes())
    dataset = build()
    content = path.read_bytes()
    assert dataset.chunks_made <= 3
    assert [content[o : o + n] for _, o, n, _, piece in skipped_pieces(dataset.folder)] == [
        b"bad \xff line",
        b"last bad \xfe line",
    ]


def test_who_has_seen_a_document(trained: Trained, corpus: Path, tmp_path: Path) -> None:
    store = trained.run.store
    text = next(corpus.glob("*.txt")).read_text().splitlines()[0]
    (tmp_path / "document").write_text(text)
    found = seen_by(store, DocumentQuery(str(tmp_path / "document"))).rows
    assert ("dataset", trained.run.dataset_folder.name) in [(row.kind, row.name) for row in found]
    assert ("run", trained.run.folder.name) in [(row.kind, row.name) for row in found]
    (tmp_path / "document").write_bytes((text + "\r\n").encode())
    assert seen_by(store, DocumentQuery(str(tmp_path / "document"))).rows == found
    assert seen_by(store, DocumentQuery(f"{1:016x}")).rows == []
    assert DocumentQuery(f"{0xABC:016x}").cut({"normalize": "NFC"}).hashes.tolist() == [0xABC]
    for name in ("no hash", "-1", "abc", "9" * 30):
        with pytest.raises(CorpusError, match="neither a document hash"):
            DocumentQuery(name)


def test_a_dataset_that_a_kill_left_without_manifest_has_seen_nothing(build: Build, tmp_path: Path) -> None:
    dataset = build()
    (dataset.folder.parent / "begun").mkdir()
    (dataset.folder.parent / "stray").write_text("")
    text = (tmp_path / "corpus" / "text.txt").read_bytes().splitlines()[0]
    (tmp_path / "document").write_bytes(text)
    found = seen_by(tmp_path / "store", DocumentQuery(str(tmp_path / "document"))).rows
    assert [(row.kind, row.name) for row in found] == [("dataset", dataset.id)]


def test_a_dataset_that_cannot_say_what_it_holds_is_named_and_the_others_asked(build: Build, tmp_path: Path) -> None:
    dataset = build()
    broken = dataset.folder.parent / "0broken"
    broken.mkdir()
    (broken / MANIFEST).write_text("{")
    (tmp_path / "document").write_bytes((tmp_path / "corpus" / "text.txt").read_bytes().splitlines()[0])
    first, second = seen_by(tmp_path / "store", DocumentQuery(str(tmp_path / "document"))).rows
    assert (first.kind, first.name) == ("unreadable", "0broken")
    assert (second.kind, second.name) == ("dataset", dataset.id)


def test_a_run_that_cannot_say_what_it_was_trained_on_is_named(build: Build, tmp_path: Path) -> None:
    dataset = build()
    for name in ("begun", "broken"):
        (tmp_path / "store" / "runs" / name).mkdir(parents=True)
    (tmp_path / "store" / "runs" / "broken" / "config.json").write_text("{")
    (tmp_path / "document").write_bytes((tmp_path / "corpus" / "text.txt").read_bytes().splitlines()[0])
    found = seen_by(tmp_path / "store", DocumentQuery(str(tmp_path / "document"))).rows
    assert [(row.kind, row.name) for row in found] == [("dataset", dataset.id), ("unreadable", "broken")]
    with pytest.raises(StoreError, match=r"broken/config.json is damaged"):
        forget(tmp_path / "store", str(tmp_path / "document"))


def test_a_normalized_document_is_found_by_the_text_of_its_file(build: Build, tmp_path: Path) -> None:
    (tmp_path / "corpus" / "more.txt").write_text("ｶﾞ１\n")
    dataset = build(normalize="NFKC")
    (tmp_path / "document").write_text("ｶﾞ１")
    found = seen_by(tmp_path / "store", DocumentQuery(str(tmp_path / "document"))).rows
    assert [(row.kind, row.name) for row in found] == [("dataset", dataset.id)]


def test_the_ledger_by_file_has_empty_and_cut_files(build: Build, tmp_path: Path) -> None:
    (tmp_path / "corpus" / "empty.txt").write_bytes(b"")
    packed = gzip.compress(b"text \xe6\x96\x87 that is cut\n" * 100)
    (tmp_path / "corpus" / "cut.txt.gz").write_bytes(packed[:-8])
    rows = {Path(row["path"]).name: row for row in ledger_by_file(build().folder)}
    assert rows.keys() == {"text.txt", "empty.txt", "cut.txt.gz"}
    assert set(rows["empty.txt"].values()) == {str(tmp_path / "corpus" / "empty.txt"), 0}
    assert rows["cut.txt.gz"]["stored_bytes"] == len(packed) - 8
    assert rows["text.txt"]["stored_bytes"] == (tmp_path / "corpus" / "text.txt").stat().st_size


def test_a_truncated_quarantine_is_an_error_that_names_it(build: Build) -> None:
    dataset = build()
    for path in (dataset.folder.parent.parent / "shards").glob("*/quarantine.arrow"):
        path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(StoreError, match=r"quarantine.arrow is damaged"):
        list(skipped_pieces(dataset.folder))


def test_a_deleted_document_makes_another_dataset_and_stays_seen_by_the_old(build: Build, tmp_path: Path) -> None:
    before = build()
    path = tmp_path / "corpus" / "text.txt"
    lines = path.read_bytes().splitlines(keepends=True)
    (tmp_path / "document").write_bytes(lines[3].rstrip())
    path.write_bytes(b"".join(line for line in lines if line != lines[3]))
    after = build()
    assert after.id != before.id
    found = seen_by(tmp_path / "store", DocumentQuery(str(tmp_path / "document"))).rows
    assert [row.name for row in found] == [before.id]


# --- what checksums do not tell: wrong from the beginning, and sealed all the same ---


def swap_chunks(manifest: dict[str, Any]) -> None:
    manifest["chunks"][:2] = manifest["chunks"][1::-1]


def forget_chunk(manifest: dict[str, Any]) -> None:
    del manifest["chunks"][0]


def add_to(*keys: str | int) -> Callable[[Any], None]:
    """Adds one to a figure, which ``keys`` lead to."""

    def change(manifest: Any) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] += 1

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (swap_chunks, "the chunks are not in the order of their keys"),
        (swap_chunks, "holds another dataset than its name says"),
        (forget_chunk, "holds another dataset than its name says"),
        (add_to("chunks", 0, "train", "documents"), "documents, the manifest says"),
        (add_to("chunks", 0, "train", "tokens"), "tokens, the manifest says"),
        (add_to("chunks", 0, "validation", "text_bytes"), "text_bytes, the manifest says"),
        (add_to("chunks", 0, "spans", 0, "documents"), "the ledger does not add up"),
        (add_to("chunks", 0, "spans", 0, "document_bytes"), "the ledger does not add up"),
        (add_to("splits", "train", "tokens"), "the ledger does not add up"),
        (add_to("ledger", "source_bytes"), "the ledger does not add up"),
        (add_to("ledger", "document_bytes"), "the ledger does not add up"),
        (add_to("ledger", "separator_bytes"), "the ledger does not add up"),
        (add_to("ledger", "skipped_bytes"), "the ledger does not add up"),
        (add_to("ledger", "unaccounted_bytes"), "the ledger does not add up"),
        (add_to("ledger", "skips", 0, "length"), "the ledger does not add up"),
        (add_to("ledger", "skipped", "invalid_utf8", "bytes"), "the ledger does not add up"),
    ],
)
def test_a_manifest_that_says_something_wrong_is_found(
    build: Build, change: Callable[[dict[str, Any]], None], problem: str
) -> None:
    dataset = build()
    manifest = read_manifest(dataset.folder)
    change(manifest)
    (dataset.folder / MANIFEST).write_bytes(manifest_bytes(manifest))
    assert any(problem in found for _, found in problems(dataset.folder))


def id_beyond_the_vocabulary(tokens: Any, vocabulary: int) -> None:
    tokens[0] = vocabulary


def eos_within_a_document(tokens: Any, vocabulary: int) -> None:
    tokens[0] = tokens[-1]


def no_eos_at_the_end(tokens: Any, vocabulary: int) -> None:
    tokens[-1] = tokens[0]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (id_beyond_the_vocabulary, r"train.arrow has id \d+, the tokenizer only"),
        (eos_within_a_document, "train.arrow has an end of text elsewhere"),
        (no_eos_at_the_end, "train.arrow has an end of text elsewhere"),
    ],
)
def test_ids_that_no_text_gives_are_found_and_repaired(
    build: Build, prepared: Prepared, change: Callable[[Any, int], None], problem: str
) -> None:
    dataset = build()
    folder = next(path.parent for path in (dataset.folder.parent.parent / "shards").glob("*/train.arrow"))
    shard = Shard(folder / "train.arrow")
    tokens = shard.tokens.copy()
    change(tokens, prepared.tokenizer.vocab_size)
    lengths, rows = np.diff(shard.offsets), np.arange(len(shard))
    about = {"tokenizer_id": prepared.tokenizer.id, "eos_id": int(shard.metadata["eos_id"])}
    write_shard(folder / "train.arrow", tokens, lengths, shard.text_bytes.copy(), rows, shard.hashes.copy(), **about)
    seal_again(folder)
    [(chunk, found)] = problems(dataset.folder)
    assert chunk == folder.name
    assert re.search(problem, found)
    assert repair(dataset.folder) == [chunk]
    assert list(problems(dataset.folder)) == []


def seal_again(folder: Path) -> None:
    """As if it had been written so."""
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        path = folder / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "blake3": hash_file(path)}
    (folder / MANIFEST).write_bytes(manifest_bytes(manifest))
