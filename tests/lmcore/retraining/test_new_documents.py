"""What is new is told apart document by document, at the cost of a manifest, and the rest of the store agrees."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.corpus.listing import Corpus
from lmcore.corpus.scan import scan
from lmcore.dataset.audit import problems, skipped_pieces
from lmcore.dataset.manifest import Dataset, age_of, base_source, by_age
from lmcore.dataset.mixture import open_blocks
from lmcore.dataset.stream import TokenStream, source_names
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import StoreError
from lmcore.retraining.new_documents import split_by_age, tokens_by_source
from lmcore.runs.seen_documents import SeenDocuments
from lmcore.settings.config import CorpusConfig, DatasetConfig, TokenizerConfig
from lmcore.store.artifacts import read_manifest
from lmcore.store.layout import prepare_store
from lmcore.tokenizer.make import make_tokenizer
from lmcore.tokenizer.tokenizer import TokenizerInfo
from tests.conftest import write_corpus


class Growing:
    """A corpus that grows, one tokenizer, one store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "corpus"
        self.config = CorpusConfig(paths=[str(self.folder)], chunk_bytes=2_000, validation_fraction=0.2)
        self.store = prepare_store(folder / "store")
        self.tokenizer: TokenizerInfo | None = None

    def write(self, lines: list[str], name: str = "text.txt") -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / name).write_bytes("".join(f"{line}\n" for line in lines).encode())

    def dataset(self) -> Dataset:
        corpus = Corpus.from_scan(scan(self.config), self.config)
        if self.tokenizer is None:
            self.tokenizer = make_tokenizer(TokenizerConfig(vocab_size=400), self.config, corpus, self.store)
        return tokenize(self.config, corpus, self.tokenizer, self.store)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = write_corpus(tmp_path_factory.mktemp("lines"), documents=400, seed=3)
    return sorted(set((folder / "text.txt").read_text(encoding="utf-8").splitlines()))


@settings(max_examples=12, suppress_health_check=list(HealthCheck))
@given(first=st.integers(150, 300), inserted=st.integers(0, 150), removed=st.integers(0, 40), at=st.integers(0, 100))
def test_each_document_is_old_or_new(
    lines: list[str], tmp_path_factory: pytest.TempPathFactory, first: int, inserted: int, removed: int, at: int
) -> None:
    growing = Growing(tmp_path_factory.mktemp("growing"))
    before, later = lines[:first], lines[first : first + min(inserted, len(lines) - first)]
    growing.write(before)
    earlier = growing.dataset()
    growing.write([*before[:at], *later, *before[at + removed :]])
    whole = growing.dataset()
    apart, news = split_by_age(whole, earlier.folder)
    both = {age: set(_hashes(apart.folder, age)) for age in ("old", "new")}
    assert both["new"] == documents(whole.folder) - documents(earlier.folder)
    assert both["old"] == documents(whole.folder) & documents(earlier.folder)
    trained_on = {*SeenDocuments.from_dataset(earlier.folder).train.tolist()}
    assert news.gone_documents == len(trained_on - documents(whole.folder))
    assert news.new_documents + news.old_documents == whole.documents
    assert sum(tokens_by_source(apart.folder).values()) == whole.tokens
    assert read_manifest(apart.folder)["splits"] == read_manifest(whole.folder)["splits"]
    assert list(problems(apart.folder)) == []


def documents(dataset: Path) -> set[int]:
    return {value for split in SeenDocuments.from_dataset(dataset) for value in split.tolist()}


def _hashes(dataset: Path, age: str) -> list[int]:
    return [
        hash_
        for split in ("train", "validation")
        for source in source_names(dataset, split)
        if age_of(source) == age
        for _, _, hash_ in TokenStream(dataset, split, source).documents()
    ]


def test_nothing_is_encoded_and_the_same_twice(lines: list[str], tmp_path: Path) -> None:
    growing = Growing(tmp_path)
    growing.write(lines[:200])
    earlier = growing.dataset()
    growing.write(lines)
    whole = growing.dataset()
    shards = {path: path.stat().st_mtime_ns for path in (growing.store / "shards").rglob("*")}
    apart, news = split_by_age(whole, earlier.folder)
    assert split_by_age(whole, earlier.folder) == (apart, news)
    assert {path: path.stat().st_mtime_ns for path in (growing.store / "shards").rglob("*")} == shards
    assert news.new_bytes > 0
    assert apart.id != whole.id
    apart.verify()


def test_old_and_new_are_mixed_at_their_shares(lines: list[str], tmp_path: Path) -> None:
    growing = Growing(tmp_path)
    growing.write(lines[:200])
    earlier = growing.dataset()
    growing.write(lines)
    apart, _ = split_by_age(growing.dataset(), earlier.folder)
    weights = {by_age("corpus", "old"): 0.25, by_age("corpus", "new"): 0.75}
    blocks = open_blocks(apart.folder, DatasetConfig(block_size=16, weights=weights))
    sources, _ = blocks.order(np.arange(len(blocks)), seed=0, shuffle=True)
    names = np.array([age_of(name) for name in blocks.sources])[sources]
    assert (names == "new").mean() == pytest.approx(0.75, abs=0.01)


def test_quarantine_of_a_chunk_that_is_both_is_still_found(lines: list[str], tmp_path: Path) -> None:
    growing = Growing(tmp_path)
    growing.write(lines[:200])
    earlier = growing.dataset()
    growing.write(lines)
    with open(growing.folder / "text.txt", "ab") as file:
        file.write(b"\xff\xfe broken\n")
    whole = growing.dataset()
    apart, _ = split_by_age(whole, earlier.folder)
    found = list(skipped_pieces(apart.folder))
    assert found == list(skipped_pieces(whole.folder))
    assert [piece for *_, piece in found] == [b"\xff\xfe broken"]


def test_an_earlier_dataset_that_is_gone_is_named(lines: list[str], tmp_path: Path) -> None:
    growing = Growing(tmp_path)
    growing.write(lines)
    whole = growing.dataset()
    with pytest.raises(StoreError, match="Without dataset no-such nobody knows which text is new"):
        split_by_age(whole, growing.store / "datasets" / "no-such")


def test_a_source_is_known_by_its_part() -> None:
    assert [age_of(by_age("wiki", age)) for age in ("old", "new")] == ["old", "new"]
    assert {base_source(by_age("wiki", age)) for age in ("old", "new")} == {base_source("wiki")} == {"wiki"}
    assert age_of("wiki") == "new"
