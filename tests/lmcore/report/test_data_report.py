"""The tokenizer's page counts what a person would count, and no piece can break it."""

from collections.abc import Callable

import numpy as np
import pytest

from lmcore.dataset.stream import TokenStream
from lmcore.report import data_report
from lmcore.report.data_report import tokenizer_fit, tokenizer_page
from lmcore.tokenizer.tokenizer import Tokenizer
from tests.conftest import Prepared


def test_a_piece_cannot_leave_the_page(check_golden: Callable[[str, str], None]) -> None:
    pieces = [b"<unk>", b"```\n# x |", b" a", "学".encode()[:1], b"unused"]
    parts = tokenizer_fit(pieces, np.array([2, 3, 1200, 5, 0]), 0)
    check_golden("tokenizer_fit.md", "\n\n".join(parts) + "\n")


def test_the_counts_are_those_of_the_shards(prepared: Prepared) -> None:
    folder = prepared.dataset.folder
    tokenizer = Tokenizer(prepared.tokenizer.folder)
    ids = [token for split in ("train", "validation") for part in TokenStream(folder, split).segments for token in part]
    texts = [token for token in ids if token != tokenizer.eos_id]
    text = tokenizer_page(prepared.dataset)
    assert f"Counted over the first {len(texts):,} ids." in text
    assert f"- vocabulary in use: {len(set(texts)) / tokenizer.vocab_size:.3%}" in text
    longest = max((tokenizer.pieces()[token] for token in set(texts)), key=lambda piece: len(piece.decode()))
    assert f"{longest.decode()!r}\n" in text.partition("with their counts:")[2]


def test_only_the_first_ids_of_a_large_dataset_are_counted(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = data_report._first_ids(prepared.dataset.folder)
    monkeypatch.setattr(data_report, "_MOST_TOKENS", 500)
    assert data_report._first_ids(prepared.dataset.folder).tolist() == whole[:500].tolist()
