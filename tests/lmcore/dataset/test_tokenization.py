"""Chunks, keys and manifests: nothing is encoded twice, nothing depends on who does it."""

import errno
import json
import os
import random
import signal
import sqlite3
import unicodedata
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from lmcore.corpus import readers
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.listing import Corpus, open_corpus
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import scan
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.stream import TokenStream
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import CorpusError, FileChangedError
from lmcore.settings.config import CorpusConfig, RunConfig
from lmcore.store.artifacts import read_manifest
from lmcore.store.layout import prepare_store
from lmcore.tokenizer.tokenizer import Tokenizer, TokenizerInfo
from tests.benchmarks.kills import Tokenize, kills
from tests.conftest import Prepared, write_corpus

NO_DASHBOARD = {"dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
"""The scheduler's server for its own figures opens a free port all the same."""


@pytest.fixture
def corpus_folder(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus", documents=2000)


@pytest.fixture
def tokenizer(prepared: Prepared) -> TokenizerInfo:
    """Any tokenizer will do; this one is trained once for all tests."""
    return prepared.tokenizer


def build(folder: Path, tokenizer: TokenizerInfo, store: Path, **settings: object) -> Dataset:
    config = CorpusConfig.model_validate({"paths": [str(folder)], "chunk_bytes": 2000, **settings})
    return tokenize(config, Corpus.from_scan(scan(config), config), tokenizer, prepare_store(store))


def hashes(dataset: Dataset, split: str) -> set[int]:
    return {digest for *_, digest in TokenStream(dataset.folder, split).documents()}


def test_shards_hold_sentencepieces_ids_and_the_eos(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    dataset = build(corpus_folder, tokenizer, tmp_path / "store")
    config = CorpusConfig(paths=[str(corpus_folder)])
    documents = {d.hash: d for file in scan(config).files for d in read_documents(file, config, Ledger())}
    own = Tokenizer(tokenizer.folder)
    count = 0
    for split in ("train", "validation"):
        for ids, text_bytes, digest in TokenStream(dataset.folder, split).documents():
            assert ids.tolist() == [*own.encode(documents[digest].text), own.eos_id]
            assert text_bytes == documents[digest].text_bytes
            count += 1
    assert count == dataset.documents + dataset.validation_documents == 2000
    manifest = json.loads((dataset.folder / "manifest.json").read_text())
    assert manifest["ledger"]["unaccounted_bytes"] == dataset.unaccounted_bytes == 0


def test_a_second_call_encodes_nothing(corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    first = build(corpus_folder, tokenizer, tmp_path / "store")
    second = build(corpus_folder, tokenizer, tmp_path / "store")
    assert first.chunks == first.chunks_made > 20
    assert second == first.model_copy(update={"chunks_made": 0})


@pytest.mark.parametrize("edit", ["insert", "delete", "append"])
def test_an_edit_costs_the_chunks_it_touches(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path, edit: str
) -> None:
    build(corpus_folder, tokenizer, tmp_path / "store")
    file = corpus_folder / "text.txt"
    lines = file.read_text().splitlines()
    if edit == "insert":
        lines.insert(1000, "新しい行")
    elif edit == "delete":
        del lines[1000]
    else:
        lines.append("終わりの行")
    file.write_text("\n".join(lines) + "\n")
    step_by_step = build(corpus_folder, tokenizer, tmp_path / "store")
    assert 1 <= step_by_step.chunks_made <= 3
    at_once = build(corpus_folder, tokenizer, tmp_path / "other")
    assert at_once.id == step_by_step.id


def test_a_rename_costs_nothing_and_the_manifest_says_the_new_place(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    before = build(corpus_folder, tokenizer, tmp_path / "store")
    os.rename(corpus_folder / "text.txt", corpus_folder / "renamed.txt")
    after = build(corpus_folder, tokenizer, tmp_path / "store")
    assert (after.id, after.chunks_made) == (before.id, 0)
    assert "renamed.txt" in (after.folder / "manifest.json").read_text()


def test_a_new_small_file_leaves_most_groups_as_they_were(tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(200):
        (folder / f"{number}.md").write_text(f"文書{number}\n" * 20)
    before = build(folder, tokenizer, tmp_path / "store")
    (folder / "new.md").write_text("新しい文書\n" * 20)
    after = build(folder, tokenizer, tmp_path / "store")
    assert before.chunks > 10
    assert 1 <= after.chunks_made <= 3


def test_the_order_of_files_changes_nothing(tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    made = []
    for name, numbers in (("one", range(8)), ("other", range(8, 0, -1))):
        for seed, number in enumerate(numbers):  # small files share chunks, large ones have their own
            write_corpus(tmp_path / name / str(number), documents=5 + 200 * (seed % 2), seed=seed)
        made.append(build(tmp_path / name, tokenizer, tmp_path / "store"))
    assert made[1].id == made[0].id
    assert (made[0].chunks_made > 10, made[1].chunks_made) == (True, 0)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_output_does_not_depend_on_workers(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path, workers: int
) -> None:
    expected = build(corpus_folder, tokenizer, tmp_path / "store")
    assert build(corpus_folder, tokenizer, tmp_path / "other", workers=workers).manifest_hash == expected.manifest_hash


def test_a_document_stays_on_its_side_for_ever(corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    before = build(corpus_folder, tokenizer, tmp_path / "store")
    write_corpus(corpus_folder / "more", documents=500, seed=1)
    after = build(corpus_folder, tokenizer, tmp_path / "store")
    assert hashes(before, "validation") < hashes(after, "validation")
    assert hashes(before, "train") < hashes(after, "train")
    assert not hashes(after, "train") & hashes(after, "validation")


def test_texts_of_validation_files_are_never_trained_on(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    lines = (corpus_folder / "text.txt").read_text().splitlines()
    (tmp_path / "held_out.txt").write_text("\n".join([*lines[::10], "別の文"]) + "\n")
    dataset = build(corpus_folder, tokenizer, tmp_path / "store", validation_paths=[str(tmp_path / "held_out.txt")])
    assert sum(dataset.dropped.values()) >= 200
    assert dataset.documents + sum(dataset.dropped.values()) == 2000
    assert not hashes(dataset, "train") & hashes(dataset, "validation")
    stream = TokenStream(dataset.folder, "train")
    assert len(stream) == dataset.tokens == sum(len(ids) for ids, *_ in stream.documents())


@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_a_damaged_chunk_is_made_again(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path, damage: str
) -> None:
    before = build(corpus_folder, tokenizer, tmp_path / "store")
    shard = next((tmp_path / "store" / "shards").glob("*/train.arrow"))
    content = shard.read_bytes()
    if damage == "delete":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(content[:-8])
    else:
        shard.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
    after = build(corpus_folder, tokenizer, tmp_path / "store")
    assert (after.id, after.chunks_made) == (before.id, 1)
    assert shard.read_bytes() == content
    after.verify()


def test_bad_lines_are_counted_in_the_manifest(corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    with open(corpus_folder / "text.txt", "ab") as file:
        file.write(b"bad \xff line\n")
    dataset = build(corpus_folder, tokenizer, tmp_path / "store")
    ledger = json.loads((dataset.folder / "manifest.json").read_text())["ledger"]
    assert (dataset.skipped, dataset.skipped_bytes) == ({"invalid_utf8": 1}, 10)
    assert ledger["skipped"] == {"invalid_utf8": {"pieces": 1, "bytes": 10}}
    assert ledger["skips"][0]["path"].endswith("text.txt")


def test_no_document_and_no_validation_document_are_errors(tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"\xff\n" * 5)
    with pytest.raises(
        CorpusError, match=r"no training document in .*bad.txt: 10 bytes of text read, .* 5 invalid_utf8"
    ):
        build(tmp_path / "bad.txt", tokenizer, tmp_path / "store")
    (tmp_path / "one.txt").write_text("一つだけの文書\n")
    with pytest.raises(CorpusError, match=r"validation split is empty: none of 1 documents.*validation_fraction"):
        build(tmp_path / "one.txt", tokenizer, tmp_path / "store")
    (tmp_path / "many.txt").write_text("\n".join(f"文書{number}" for number in range(200)))
    with pytest.raises(CorpusError, match=r"no training document in .*many.txt: .*left out: 200 too_short"):
        build(tmp_path / "many.txt", tokenizer, tmp_path / "store", min_bytes=1000)
    with pytest.raises(CorpusError, match=r"no document to validate on in .*bad.txt: .*5 invalid_utf8"):
        build(tmp_path / "many.txt", tokenizer, tmp_path / "store", validation_paths=[str(tmp_path / "bad.txt")])
    assert not (tmp_path / "store" / "datasets").exists()


def test_progress_ends_at_all_bytes(corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    config = CorpusConfig(paths=[str(corpus_folder)], chunk_bytes=2000)
    corpus = Corpus.from_scan(scan(config), config)
    seen: list[tuple[int, int]] = []
    tokenize(
        config, corpus, tokenizer, prepare_store(tmp_path / "store"), lambda done, total: seen.append((done, total))
    )
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (corpus.stored_bytes, corpus.stored_bytes)


def test_a_file_that_changes_while_it_is_read_costs_only_itself(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (corpus_folder / "other.txt").write_text("別の文書\n" * 3000)
    whole = build(corpus_folder, tokenizer, tmp_path / "store")
    real = readers.open_stored

    times = count()

    def growing(path: str) -> object:
        if path.endswith("other.txt"):
            Path(path).write_text(f"変わった{next(times)}\n" * 3000)
        return real(path)

    monkeypatch.setattr(readers, "open_stored", growing)
    (corpus_folder / "other.txt").write_text("別の文書 \n" * 3000)
    dataset = build(corpus_folder, tokenizer, tmp_path / "store")
    assert dataset.skipped == {"changed_while_read": 1}
    assert dataset.unaccounted_bytes == 0
    assert dataset.documents + dataset.validation_documents == 2000 < whole.documents
    (corpus_folder / "other.txt").write_text("別の文書  \n" * 3000)
    with pytest.raises(FileChangedError, match=r"other.txt: changed while read"):
        build(corpus_folder, tokenizer, tmp_path / "store", on_bad_input="fail")


def becomes_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def becomes_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def becomes_forbidden(path: Path) -> None:
    raise PermissionError(errno.EACCES, "no", str(path))  # tests may run as root, whom nothing is forbidden


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (Path.unlink, "unreadable"),
        (becomes_a_folder, "unreadable"),
        (becomes_forbidden, "unreadable"),
        (becomes_a_pipe, "changed_while_read"),
    ],
)
def test_a_file_that_is_one_no_more_when_its_turn_comes_costs_only_itself(
    corpus_folder: Path,
    tokenizer: TokenizerInfo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path], None],
    reason: str,
) -> None:
    whole = build(corpus_folder, tokenizer, tmp_path / "store")
    other = corpus_folder / "other.txt"
    other.write_text("別の文書\n" * 3000)
    real = readers.open_stored

    def open_after_the_change(path: str) -> object:
        if path == str(other):
            change(other)
        return real(path)

    monkeypatch.setattr(readers, "open_stored", open_after_the_change)
    dataset = build(corpus_folder, tokenizer, tmp_path / "store")
    assert (dataset.id, dataset.skipped, dataset.unaccounted_bytes) == (whole.id, {reason: 1}, 0)
    [skip] = read_manifest(dataset.folder)["ledger"]["skips"]
    assert (skip["path"], skip["reason"]) == (str(other), reason)


def test_bad_input_may_end_the_run(corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    with open(corpus_folder / "text.txt", "ab") as file:
        file.write(b"bad \xff line\n")
    with pytest.raises(CorpusError, match=r"text.txt at \d+: invalid_utf8 \(10 bytes\)"):
        build(corpus_folder, tokenizer, tmp_path / "store", on_bad_input="fail")
    assert not (tmp_path / "store" / "datasets").exists()


def test_bad_input_ends_the_run_before_the_rest_is_encoded(tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", documents=5000)
    text = (tmp_path / "corpus" / "text.txt").read_bytes()
    (tmp_path / "corpus" / "text.txt").write_bytes(b"bad \xff line\n" + text)
    with pytest.raises(CorpusError, match=r"text.txt at 0: invalid_utf8"):
        build(tmp_path / "corpus", tokenizer, tmp_path / "store", on_bad_input="fail", workers=1)
    assert len(list((tmp_path / "store" / "shards").glob("[!.]*"))) < 10
    whole = build(tmp_path / "corpus", tokenizer, tmp_path / "store")
    assert whole.chunks > 50
    with pytest.raises(CorpusError, match=r"text.txt at 0: invalid_utf8"):
        build(tmp_path / "corpus", tokenizer, tmp_path / "store", on_bad_input="fail")


def test_duplicates_and_lengths_are_left_out_and_counted(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    plain = build(corpus_folder, tokenizer, tmp_path / "store")
    lines = (corpus_folder / "text.txt").read_text().splitlines()
    (corpus_folder / "again.txt").write_text("\n".join([*lines[::2], "短い"]) + "\n")
    once = build(corpus_folder, tokenizer, tmp_path / "store", deduplicate=True, min_bytes=10)
    short = sum(len(line.encode()) < 10 for line in [*lines, *lines[::2], "短い"])
    assert once.dropped["too_short"] == short >= 1
    assert once.dropped["duplicate"] == 3001 - short - len({line for line in lines if len(line.encode()) >= 10})
    assert once.duplicate_documents == 0
    assert hashes(once, "train") <= hashes(plain, "train")
    both = build(corpus_folder, tokenizer, tmp_path / "store")
    assert both.chunks_made == 0, "changing a filter encodes nothing"
    assert both.id != once.id
    stream = TokenStream(once.folder, "train")
    assert len(stream) == once.tokens


def test_texts_that_normalization_makes_equal_are_one_text(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    texts = [f"が{number}" for number in range(400)]
    both = [*texts, *(unicodedata.normalize("NFD", text) for text in texts)]
    (corpus_folder / "text.txt").write_text("\n".join(both))
    settings: dict[str, object] = {"normalize": "NFC", "chunk_bytes": 1000}
    twice = build(corpus_folder, tokenizer, tmp_path / "store", **settings)
    assert not hashes(twice, "train") & hashes(twice, "validation")
    once = build(corpus_folder, tokenizer, tmp_path / "store", **settings, deduplicate=True)
    assert once.documents + once.validation_documents == once.dropped["duplicate"] == 400
    # The shorter spelling is left out by its length, not with it the longer one.
    long = build(corpus_folder, tokenizer, tmp_path / "store", **settings, deduplicate=True, min_bytes=6)
    assert long.documents + long.validation_documents == 400
    (tmp_path / "held_out.txt").write_text("\n".join(texts[:50]))
    held_out = build(
        corpus_folder, tokenizer, tmp_path / "store", **settings, validation_paths=[str(tmp_path / "held_out.txt")]
    )
    assert held_out.dropped == {"validation_text": 100}


def test_normalized_text_is_counted_as_it_stood(corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    (corpus_folder / "text.txt").write_text("".join(f"ｶﾞ１{number}\n" for number in range(500)))
    plain = build(corpus_folder, tokenizer, tmp_path / "store")
    folded = build(corpus_folder, tokenizer, tmp_path / "store", normalize="NFKC")
    texts = folded.text_bytes + folded.validation_text_bytes
    assert texts == plain.text_bytes + plain.validation_text_bytes
    own = Tokenizer(tokenizer.folder)
    ids = next(iter(TokenStream(folded.folder, "train").documents()))[0].tolist()
    assert own.decode(ids).startswith("ガ1")
    manifest = json.loads((folded.folder / "manifest.json").read_text())
    assert manifest["ledger"]["normalized_documents"] == 500


def test_an_unchanged_corpus_is_not_read(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build(corpus_folder, tokenizer, tmp_path / "store")
    monkeypatch.setattr(readers, "open_stored", lambda path: pytest.fail(f"{path} was read"))
    assert build(corpus_folder, tokenizer, tmp_path / "store").id == before.id


def test_processes_give_the_same_as_threads(corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    expected = build(corpus_folder, tokenizer, tmp_path / "store")
    config = CorpusConfig(paths=[str(corpus_folder)], chunk_bytes=2000)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        store = prepare_store(tmp_path / "other")
        found = tokenize(config, Corpus.from_scan(scan(config), config), tokenizer, store, executor=pool)
    assert found.id == expected.id


def test_a_dask_worker_that_is_killed_amid_a_chunk_costs_nothing(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    expected = build(corpus_folder, tokenizer, tmp_path / "store")
    config = CorpusConfig(paths=[str(corpus_folder)], chunk_bytes=2000, workers=2)
    store = prepare_store(tmp_path / "other")
    chunks_at_the_kill: list[int] = []

    def kill_once_amid_a_chunk(done: int, total: int) -> None:
        if done and not chunks_at_the_kill:
            os.kill(victim, signal.SIGSTOP)  # it stands still while we look
            if list(store.glob(f"shards/.tmp-*-{victim}-*")):
                chunks_at_the_kill.append(len(list(store.glob("shards/[!.]*"))))
                os.kill(victim, signal.SIGKILL)
            else:
                os.kill(victim, signal.SIGCONT)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", **NO_DASHBOARD) as cluster,
        Client(cluster) as client,
    ):
        victim, survivor = client.run(os.getpid).values()
        assert os.getpid() not in (victim, survivor)
        corpus = Corpus.from_scan(scan(config), config)
        found = tokenize(config, corpus, tokenizer, store, kill_once_amid_a_chunk, client.get_executor())
    [there] = chunks_at_the_kill
    assert 0 < there < found.chunks
    assert (found.id, found.chunks_made) == (expected.id, expected.chunks_made)
    assert not list(store.rglob(".tmp-*"))
    found.verify()


def test_sources_have_names_in_the_manifest(corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path) -> None:
    wiki = write_corpus(tmp_path / "wiki", documents=300, seed=5)
    dataset = build(corpus_folder, tokenizer, tmp_path / "store", sources={"wiki": [str(wiki)]})
    manifest = json.loads((dataset.folder / "manifest.json").read_text())
    documents = {"corpus": 0, "wiki": 0}
    for chunk in manifest["chunks"]:
        documents[chunk["source"]] += sum(chunk[split]["documents"] for split in ("train", "validation"))
    assert documents == {"corpus": 2000, "wiki": 300}


def test_the_order_in_which_sources_are_written_changes_nothing(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    wiki = str(write_corpus(tmp_path / "wiki", documents=300, seed=5))
    sources = {"wiki": [wiki], "a": [wiki, str(corpus_folder)]}
    made = []
    for order in (sources, dict(reversed(sources.items()))):
        config = CorpusConfig(sources=order, chunk_bytes=2000)
        made.append(
            tokenize(config, Corpus.from_scan(scan(config), config), tokenizer, prepare_store(tmp_path / "store"))
        )
    assert made[0].id == made[1].id
    assert {chunk["source"] for chunk in read_manifest(made[0].folder)["chunks"]} == {"a"}


def test_an_edit_that_keeps_size_and_time_is_seen_when_the_file_is_read(
    tokenizer: TokenizerInfo, tmp_path: Path
) -> None:
    folder, store = tmp_path / "corpus", tmp_path / "store"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.txt").write_text("\n".join(f"{name} {number}" for number in range(100)))
        os.utime(folder / f"{name}.txt", (1, 1))

    def from_the_index() -> Dataset:
        config = RunConfig(corpus=CorpusConfig(paths=[str(folder)], chunk_bytes=20_000), store=store)
        corpus, _ = open_corpus(config)
        return tokenize(config.corpus, corpus, tokenizer, store)

    from_the_index()
    with open(folder / "a.txt", "r+") as file:
        file.write("A")
    os.utime(folder / "a.txt", (1, 1))
    (folder / "b.txt").write_text("\n".join(f"b {number}" for number in range(101)))
    again = from_the_index()
    assert (again.skipped, again.documents + again.validation_documents) == ({}, 201)
    assert from_the_index().id == build(folder, tokenizer, tmp_path / "other", chunk_bytes=20_000).id


@pytest.mark.parametrize("damage", ["value = replace(value, '1', '2')", "value = '{'"])
def test_damage_in_the_index_costs_time_only(
    corpus_folder: Path, tokenizer: TokenizerInfo, tmp_path: Path, damage: str
) -> None:
    os.utime(corpus_folder / "text.txt", (1, 1))
    before = build(corpus_folder, tokenizer, tmp_path / "store")
    with closing(sqlite3.connect(tmp_path / "store" / "index.sqlite")) as database, database:
        database.execute(f"update hints set {damage}")
    assert build(corpus_folder, tokenizer, tmp_path / "store") == before.model_copy(update={"chunks_made": 0})


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Tokenize:
    return Tokenize(tmp_path_factory.mktemp("kills"))


@pytest.mark.parametrize("seed", range(10))
def test_killed_while_tokenizing_it_ends_with_the_same_dataset(campaign: Tokenize, seed: int) -> None:
    [kill] = kills(campaign, 1, random.Random(seed))
    assert kill.problems == []
