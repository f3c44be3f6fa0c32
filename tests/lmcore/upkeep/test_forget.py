"""A forgotten document is in no file of the store, comes back by no way, and who saw it is said plainly."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from lmcore.corpus.document_hashes import forgotten_events
from lmcore.corpus.document_query import DocumentQuery
from lmcore.corpus.listing import Corpus
from lmcore.corpus.scan import scan
from lmcore.dataset.audit import problems, repair, skipped_pieces
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.shards import SPLITS, Shard, shard_path
from lmcore.dataset.stream import TokenStream
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import CorpusError, RunError
from lmcore.model.evaluate import evaluate
from lmcore.model.export import export
from lmcore.registry.registry import add_version, promote
from lmcore.registry.versions import champion, versions
from lmcore.retraining.new_documents import split_by_age
from lmcore.runs.run import Run
from lmcore.settings.config import CorpusConfig
from lmcore.store.artifacts import verify_artifact
from lmcore.store.files import hash_text
from lmcore.store.locks import locked, store_locked
from lmcore.tokenizer.tokenizer import Tokenizer
from lmcore.training.train import train
from lmcore.upkeep.forget import Forgotten, forget
from lmcore.upkeep.seen_by import seen_by
from lmcore.upkeep.verify import check_receipt
from tests.conftest import Prepared, prepare, tiny_config, write_corpus
from tests.dying import ends

WRITES = [(os, "replace"), (os, "rename"), (Path, "unlink"), (shutil, "rmtree")]


def settings(corpus: Path, **more: object) -> CorpusConfig:
    return CorpusConfig.model_validate({"paths": [str(corpus)], "chunk_bytes": 2000, **more})


def tokenized(store: Path, prepared: Prepared, **more: object) -> Dataset:
    config = settings(store.parent / "corpus", **more)
    return tokenize(config, Corpus.from_scan(scan(config), config), prepared.tokenizer, store)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """A store with the version lm/v0001, whose run wrote samples, and a corpus with two bad lines."""
    folder = tmp_path_factory.mktemp("forgetting")
    corpus = write_corpus(folder / "corpus")
    with open(corpus / "text.txt", "ab") as file:
        file.write(b"bad \xff line\nlast bad \xfe line\n")
    config = tiny_config(corpus, folder / "store", max_steps=4)
    prepared = prepare(config.model_copy(update={"corpus": settings(corpus)}))
    run = prepared.run()
    training = train(run)
    export(training, evaluate(run, training.checkpoint))
    run.samples.write_text(text_of(corpus).decode())
    (run.folder / "report.md").write_text("report")
    (run.folder / "tensorboard").mkdir()
    (run.folder / "tensorboard" / "events").write_text("events")
    add_version(prepared.store, "lm", run, {"promoted": True})
    promote(prepared.store, "lm", "v0001", expected=None, reason="first")
    return prepared


def text_of(corpus: Path) -> bytes:
    """The document to forget: one of the training split."""
    lines = (corpus / "text.txt").read_bytes().splitlines()
    return next(line for line in lines[7:] if hash_text(line) >= 0.05 * 2**64)


@pytest.fixture
def store(original: Prepared, tmp_path: Path) -> Path:
    """A copy of the store beside a copy of its corpus."""
    shutil.copytree(original.store.parent, tmp_path, dirs_exist_ok=True)
    return tmp_path / "store"


@pytest.fixture
def document(store: Path) -> str:
    """A file with the text."""
    (store.parent / "document").write_bytes(text_of(store.parent / "corpus"))
    return str(store.parent / "document")


def shard_texts(store: Path) -> list[bytes]:
    """The text of every row of every shard, dropped or not."""
    texts = []
    for path in (store / "shards").glob("*/*.arrow"):
        if path.stem in SPLITS:
            shard = Shard(path)
            tokenizer = Tokenizer(store / "tokenizers" / shard.metadata["tokenizer_id"])
            ids = [shard.tokens[a:b] for a, b in zip(shard.offsets[:-1], shard.offsets[1:], strict=True)]
            texts += [tokenizer.decode(row[:-1].tolist()).encode() for row in ids]
    return texts


def files_with(store: Path, text: bytes) -> list[Path]:
    return [path for path in store.rglob("*") if path.is_file() and text in path.read_bytes()]


def of_kind(store: Path, document: str, kind: str) -> list[str]:
    return seen_by(store, DocumentQuery(document)).names(kind)


def test_a_forgotten_document_is_nowhere_and_who_saw_it_is_named(store: Path, document: str) -> None:
    text = Path(document).read_bytes()
    [old], [run] = of_kind(store, document, "dataset"), of_kind(store, document, "run")
    assert of_kind(store, document, "version") == ["lm/v0001"]
    assert text in shard_texts(store)
    assert files_with(store, text)
    done = forget(store, document)
    assert (list(done.datasets), done.runs, done.versions) == ([old], [run], ["lm/v0001"])
    assert done.documents == [f"{hash_text(text):016x}"]
    assert len(done.chunks) == 1
    assert text not in shard_texts(store)
    assert files_with(store, text) == []
    assert not (store / "runs" / run / "tensorboard").exists()
    assert not (store / "datasets" / old).exists()
    assert list(problems(store / "datasets" / done.datasets[old])) == []
    assert of_kind(store, document, "dataset") == []
    assert (of_kind(store, document, "run"), of_kind(store, document, "version")) == ([run], ["lm/v0001"])
    best = champion(store, "lm")
    assert best is not None
    assert best.dataset == store / "datasets" / done.datasets[old]


def test_what_went_on_from_a_model_that_saw_it_has_seen_it(store: Path, original: Prepared, document: str) -> None:
    [first] = of_kind(store, document, "run")
    without = tokenized(store, original, exclude_documents=[f"{hash_text(Path(document).read_bytes()):016x}"])
    second = replace(original, store=store, dataset=without).run(init_from=str(store / "runs" / first / "model"))
    third = replace(original, store=store, dataset=without).run(init_from=str(store / "models" / "lm" / "v0001"))
    unseen = replace(original, store=store, dataset=without).run()
    assert sorted(of_kind(store, document, "run")) == sorted([first, second.folder.name, third.folder.name])
    assert sorted(forget(store, document).runs) == sorted([first, second.folder.name, third.folder.name])
    assert sorted(of_kind(store, document, "run")) == sorted([first, second.folder.name, third.folder.name])
    assert unseen.folder.name not in of_kind(store, document, "run")


def test_only_the_chunk_that_held_it_changes(store: Path, document: str) -> None:
    before = {path: path.stat().st_ino for path in (store / "shards").glob("*/*")}
    [changed] = forget(store, document).chunks
    after = {path: path.stat().st_ino for path in (store / "shards").glob("*/*")}
    assert {path.parent.name for path in before if before[path] != after[path]} == {changed}
    assert len(before) > 3 * 4
    verify_artifact(store / "shards" / changed)


def test_it_does_not_come_back_though_the_corpus_still_holds_it(store: Path, original: Prepared, document: str) -> None:
    text = Path(document).read_bytes()
    done = forget(store, document)
    again = tokenized(store, original)
    assert (again.id, again.chunks_made) == (next(iter(done.datasets.values())), 0)
    assert again.dropped == {"excluded": 1}
    shutil.rmtree(shard_path(store / "shards" / done.chunks[0], "train").parent)
    assert repair(again.folder) == done.chunks
    assert text not in shard_texts(store)
    assert list(problems(again.folder)) == []
    whole = tokenized(store, original, chunk_bytes=100_000)
    assert whole.dropped == {"excluded": 1}
    assert text not in shard_texts(store)


def test_a_dataset_that_had_left_it_out_stays_and_its_version_verifies(
    store: Path, original: Prepared, document: str
) -> None:
    without = tokenized(store, original, exclude_documents=[f"{hash_text(Path(document).read_bytes()):016x}"])
    ids = list(TokenStream(without.folder, "train").documents())
    done = forget(store, document)
    assert without.id == next(iter(done.datasets.values()))
    assert list(problems(without.folder)) == []
    assert [row[0].tolist() for row in TokenStream(without.folder, "train").documents()] == [
        row[0].tolist() for row in ids
    ]


def test_a_version_that_saw_it_says_so_when_it_is_verified(
    store: Path, original: Prepared, document: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    [version] = versions(store, "lm")
    assert list(check_receipt(version)) == []
    done = forget(store, document)
    [line] = check_receipt(version)
    assert f"document {done.documents[0]} was forgotten at " in line
    assert "The weights have seen the document" in line


def test_a_dry_run_says_the_same_and_does_nothing(store: Path, document: str) -> None:
    def state() -> dict[Path, bytes]:
        files = (path for path in store.rglob("*") if path.is_file() and path.name not in ("lock", "in_use"))
        return {path: path.read_bytes() for path in files}

    before = state()
    said = forget(store, document, dry_run=True)
    assert state() == before
    assert forget(store, document) == said
    assert set(said.files) == {f"runs/{said.runs[0]}/{name}" for name in ("samples.jsonl", "report.md", "tensorboard")}
    assert all(Path(path).name == "text.txt" for path in said.corpus_paths)


def test_a_second_call_finds_nothing_left_to_do(store: Path, document: str) -> None:
    forget(store, document)
    again = forget(store, document)
    assert (again.chunks, again.datasets, again.files) == ([], {}, [])
    assert again.versions == ["lm/v0001"]
    assert len(forgotten_events(store)) == 1


def test_a_piece_in_quarantine_is_forgotten_too(store: Path, original: Prepared) -> None:
    (store.parent / "piece").write_bytes(b"bad \xff line")
    dataset = tokenized(store, original)
    assert forget(store, str(store.parent / "piece")).datasets == {}
    assert [piece for *_, piece in skipped_pieces(dataset.folder)] == [b"", b"last bad \xfe line"]
    assert list(problems(dataset.folder)) == []


def test_what_was_never_there_is_remembered_all_the_same(store: Path) -> None:
    done = forget(store, f"{7:016x}")
    assert done == Forgotten(
        documents=[f"{7:016x}"],
        absent=[f"{7:016x}"],
        chunks=[],
        datasets={},
        runs=[],
        versions=[],
        files=[],
        corpus_paths={},
    )
    assert [event["documents"] for event in forgotten_events(store)] == [done.documents]


def test_nothing_is_taken_from_a_run_that_is_running_or_while_text_is_tokenized(store: Path, document: str) -> None:
    [run] = of_kind(store, document, "run")
    before = shard_texts(store)
    with locked(Run.open(store / "runs" / run).lock, "refuse"), pytest.raises(RunError, match=f"{run} is in use by"):
        forget(store, document)
    with store_locked(store, shared=True), pytest.raises(RunError, match=r"^store .* is in use by another process"):
        forget(store, document)
    assert shard_texts(store) == before
    assert forgotten_events(store) == []


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")  # the child starts no thread
def test_a_kill_anywhere_is_made_good_by_the_same_command(store: Path, original: Prepared, document: str) -> None:
    text, write, ended = Path(document).read_bytes(), 0, False
    while not ended:
        write += 1
        copy = store.parent / str(write)
        shutil.copytree(store, copy / "store")
        shutil.copytree(store.parent / "corpus", copy / "corpus")
        ended = ends(partial(forget, copy / "store", document), write, WRITES)
        forget(copy / "store", document)
        dataset = tokenized(copy / "store", original)  # makes again what the kill took in the middle of a swap
        assert list(problems(dataset.folder)) == []
        assert text not in shard_texts(copy / "store")
        assert of_kind(copy / "store", document, "dataset") == []
        assert of_kind(copy / "store", document, "version") == ["lm/v0001"]
        assert files_with(copy / "store", text) == []
    assert write > 5


def test_every_document_of_a_file_of_lines_is_found_and_forgotten(store: Path, original: Prepared) -> None:
    lines = (store.parent / "corpus" / "text.txt").read_bytes().splitlines()[:40]
    file = store.parent / "some.txt"
    file.write_bytes(b"\n".join([*lines, b"a line that is nowhere", b""]))
    before = seen_by(store, DocumentQuery(str(file)))
    assert str(before.match) == "40 of 41 documents"
    assert [row.why for row in before.rows if row.kind == "dataset"] == ["train and validation, 40 of 41 documents"]
    done = forget(store, str(file))
    assert (len(done.documents), done.absent) == (41, [f"{hash_text(b'a line that is nowhere'):016x}"])
    assert done.summary == "found 40 of 41 documents"
    assert not set(lines) & set(shard_texts(store))
    assert tokenized(store, original).dropped == {"excluded": 40}
    assert forget(store, str(file)).absent == done.absent


@pytest.mark.parametrize(
    ("name", "settings", "written"),
    [
        ("rows.jsonl", {"text_field": "content"}, lambda lines: [json.dumps({"content": line}) for line in lines]),
        ("rows.jsonl.gz", {}, lambda lines: [json.dumps({"text": line, "id": 1}) for line in lines]),
        ("parts.txt", {"document": "paragraph"}, lambda lines: [f"{line}\n" for line in lines]),
        ("no-suffix", {}, lambda lines: lines),
    ],
)
def test_a_file_is_cut_as_the_dataset_was(
    tmp_path: Path, name: str, settings: dict[str, str], written: Callable[[list[str]], list[str]]
) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    lines = (corpus / "text.txt").read_text().splitlines()
    content = "\n".join(written(lines[:9])).encode()
    kind = name if "." in name else "more.txt"
    if name.startswith("rows"):
        (corpus / "text.txt").unlink()
        everything = "\n".join(written(lines)).encode()
        (corpus / kind).write_bytes(gzip.compress(everything) if name.endswith("gz") else everything)
    elif name == "parts.txt":
        (corpus / "text.txt").write_text("\n".join(written(lines)))
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    config = tiny_config(corpus, tmp_path / "store")
    corpus_settings = CorpusConfig.model_validate({**config.corpus.model_dump(), **settings})
    dataset = prepare(config.model_copy(update={"corpus": corpus_settings})).dataset
    seen = seen_by(tmp_path / "store", DocumentQuery(str(tmp_path / name)))
    assert seen.names("dataset") == [dataset.id]
    assert (len(seen.match.found), seen.match.documents) == (9, 9)


@pytest.mark.parametrize(("text", "status"), [("known", 0), ("unknown", 1)])
def test_the_exit_status_says_whether_every_document_was_found(
    store: Path, document: str, text: str, status: int
) -> None:
    if text == "unknown":
        Path(document).write_text("nobody has written this")
    for verb, option in (("seen-by", []), ("forget", ["--dry-run"])):
        command = [sys.executable, "-m", "lmcore", verb, document, "--store", str(store), *option]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        assert f"found {1 - status} of 1 documents" in done.stderr


def test_a_file_that_no_corpus_reads_says_what_it_is(store: Path) -> None:
    file = store.parent / "euc.txt"
    file.write_bytes("これは試験のための短い文です。カタカナも漢字もあります。\n".encode("euc_jp") * 20)
    with pytest.raises(CorpusError, match=r"euc\.txt is EUC-JP text, not UTF-8: convert it with .* No document of it"):
        forget(store, str(file))
    assert forgotten_events(store) == []
    command = [sys.executable, "-m", "lmcore", "seen-by", str(file), "--store", str(store)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert "euc.txt is EUC-JP text, not UTF-8" in done.stderr


def test_files_of_the_corpus_are_named_with_how_many_of_the_documents_they_hold(
    store: Path, original: Prepared
) -> None:
    lines = (store.parent / "corpus" / "text.txt").read_bytes().splitlines()
    asked, other = store.parent / "corpus" / "asked.txt", store.parent / "corpus" / "other.txt"
    asked.write_bytes(b"first line of it\n" + lines[9] + b"\nthird line of it\n")
    other.write_bytes(b"here stands\n" + lines[9] + b"\n")
    tokenized(store, original)
    said = forget(store, str(asked), dry_run=True)
    counts = {Path(path).name: count for path, count in said.corpus_paths.items()}
    assert counts == {"asked.txt": 3, "other.txt": 1, "text.txt": 1}
    about = {Path(row["what"]).name: row["about it"] for row in said.rows(dry_run=True)}
    assert about["other.txt"].startswith("holds 1 of the documents: delete them there too")
    nowhere = forget(store, f"{7:016x}", dry_run=True).rows(dry_run=True)
    assert [row["about it"] for row in nowhere] == ["was not found in this store. It would be left out from now on"]


def test_a_file_that_retraining_found_new_is_named(store: Path, original: Prepared) -> None:
    asked = store.parent / "corpus" / "asked.txt"
    asked.write_bytes(b"first line of it\nsecond line of it\n")
    split_by_age(tokenized(store, original, chunk_bytes=1 << 20), store / "datasets" / original.dataset.id)
    said = forget(store, str(asked), dry_run=True)
    assert {Path(path).name: count for path, count in said.corpus_paths.items()} == {"asked.txt": 2}
