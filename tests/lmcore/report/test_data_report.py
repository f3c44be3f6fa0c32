"""The tokenizer's page counts what a person would count."""

import pytest

from lmcore.dataset.stream import TokenStream
from lmcore.report import data_report
from lmcore.report.data_report import tokenizer_page
from lmcore.tokenizer.tokenizer import Tokenizer
from tests.conftest import Prepared


def test_the_counts_are_those_of_the_shards(prepared: Prepared) -> None:
    folder = prepared.dataset.folder
    tokenizer = Tokenizer(prepared.tokenizer.folder)
    ids = [token for split in ("train", "validation") for part in TokenStream(folder, split).segments for token in part]
    texts = [token for token in ids if token != tokenizer.eos_id]
    pieces = tokenizer.pieces()
    parts = [token for token in texts if pieces[token].decode(errors="replace").encode() != pieces[token]]
    text = tokenizer_page(prepared.dataset)
    assert f"| ids counted | the first {len(texts):,} |" in text
    assert f"| vocabulary in use | {len(set(texts)) / tokenizer.vocab_size:.3%} |" in text
    assert f"| parts of characters (byte fallback) | {len(parts) / len(texts):.3%} |" in text
    assert "| unknown ids | 0.000% |" in text


def test_only_the_first_ids_of_a_large_dataset_are_counted(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data_report._first_ids(prepared.dataset.folder)
    monkeypatch.setattr(data_report, "_MOST_TOKENS", 500)
    assert data_report._first_ids(prepared.dataset.folder).tolist() == whole[:500].tolist()
