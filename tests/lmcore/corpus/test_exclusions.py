"""Documents are left out by their hashes, wherever these are written, and nothing is encoded again for it."""

from pathlib import Path

import numpy as np
import pytest

from lmcore.corpus.document_query import DocumentQuery
from lmcore.corpus.listing import Corpus, excluded_hashes
from lmcore.corpus.scan import scan
from lmcore.dataset.audit import problems
from lmcore.dataset.filters import hashes
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.shards import SPLITS
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import ConfigError
from lmcore.settings.config import CorpusConfig
from lmcore.store.artifacts import read_manifest
from lmcore.store.files import hash_text
from lmcore.upkeep.seen_by import seen_by
from tests.conftest import Prepared, prepare, tiny_config, write_corpus


def exclude(prepared: Prepared, *documents: str) -> Dataset:
    config = CorpusConfig.model_validate({**prepared.config.corpus.model_dump(), "exclude_documents": documents})
    return tokenize(config, Corpus.from_scan(scan(config), config), prepared.tokenizer, prepared.store)


@pytest.fixture
def own(tmp_path: Path) -> Prepared:
    return prepare(tiny_config(write_corpus(tmp_path / "corpus"), tmp_path / "store"))


def test_an_excluded_document_is_in_no_split_and_costs_no_encoding(own: Prepared, tmp_path: Path) -> None:
    lines = (tmp_path / "corpus" / "text.txt").read_bytes().splitlines()
    names = [f"{hash_text(line):016x}" for line in lines[:3]]
    (tmp_path / "list").write_text(f"{names[1]}\n\n {names[2].upper()} \n")
    dataset = exclude(own, names[0], str(tmp_path / "list"))
    assert (dataset.chunks_made, dataset.dropped) == (0, {"excluded": 3})
    assert dataset.documents + dataset.validation_documents == len(lines) - 3
    manifest = read_manifest(dataset.folder)
    assert manifest["corpus"]["exclude_documents"] == sorted(names)
    held = hashes(manifest["chunks"], own.store, *SPLITS)
    assert not np.isin(np.array([int(name, 16) for name in names], np.uint64), held).any()
    assert list(problems(dataset.folder)) == []
    assert dataset.id not in seen_by(own.store, DocumentQuery(names[0])).names("dataset")


def test_the_same_hashes_make_the_same_dataset_wherever_they_stand(own: Prepared, tmp_path: Path) -> None:
    name = f"{hash_text((tmp_path / 'corpus' / 'text.txt').read_bytes().splitlines()[0]):016x}"
    (tmp_path / "list").write_text(name)
    assert exclude(own, name) == exclude(own, str(tmp_path / "list"), name)
    assert exclude(own, f"{1:016x}").id == own.dataset.id


def test_a_tokenizer_that_is_trained_here_does_not_see_what_is_excluded(own: Prepared, tmp_path: Path) -> None:
    text = (tmp_path / "corpus" / "text.txt").read_bytes()
    excluded = [f"{hash_text(line):016x}" for line in text.splitlines()[:100]]
    content = own.config.model_dump()
    content["corpus"]["exclude_documents"] = excluded
    without = prepare(type(own.config).model_validate(content)).tokenizer
    assert without.id != own.tokenizer.id
    assert without.corpus_bytes < own.tokenizer.corpus_bytes


def test_what_is_no_hash_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exclude_documents: 1234 is neither a document hash .* nor a file"):
        excluded_hashes(CorpusConfig(exclude_documents=["1234"]))
    (tmp_path / "list").write_text("0123456789abcdef\nhello\n")
    with pytest.raises(ConfigError, match=r"word \d of .*list is not a hash"):
        excluded_hashes(CorpusConfig(exclude_documents=[str(tmp_path / "list")]))


def test_a_file_of_documents_is_cut_as_the_corpus_is(
    own: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = (tmp_path / "corpus" / "text.txt").read_bytes().splitlines()
    (tmp_path / "some.txt").write_bytes(b"\n".join([*lines[:5], b"a line that is nowhere", b""]))
    dataset = exclude(own, str(tmp_path / "some.txt"))
    assert dataset.dropped == {"excluded": 5}
    assert "5 of 6 documents were found" in caplog.text
