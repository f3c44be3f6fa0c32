"""Scores by document: their sums, their name, and the file they are kept in."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.errors import CorpusError, FormatError, StoreError
from lmcore.runs.scores import DocumentScores, Score

COLUMNS = ("hashes", "nats", "tokens", "text_bytes", "sources", "groups")


def scores_of(documents: int = 6) -> DocumentScores:
    rows = np.arange(documents)
    return DocumentScores(
        weights="w",
        tokenizer_id="t",
        block_size=16,
        hashes=(2**64 - 1 - rows.astype(np.uint64)),
        nats=rows * 1.5 + 0.1,
        tokens=rows + 1,
        text_bytes=rows * 3 + 1,
        sources=np.where(rows % 3 == 0, "web", "百科"),
        groups=np.where(rows % 2 == 0, "old", "new"),
    )


def same(first: DocumentScores, second: DocumentScores) -> bool:
    ids = [(each.weights, each.tokenizer_id, each.block_size) for each in (first, second)]
    columns = [np.array_equal(getattr(first, name), getattr(second, name)) for name in COLUMNS]
    return ids[0] == ids[1] and all(columns)


@pytest.mark.parametrize("documents", [0, 1, 6])
def test_a_file_gives_back_what_was_written(tmp_path: Path, documents: int) -> None:
    scores = scores_of(documents).save(tmp_path / "scores.arrow")
    assert same(DocumentScores.load(tmp_path / "scores.arrow"), scores)


def test_the_file_is_plain_arrow(tmp_path: Path) -> None:
    scores_of().save(tmp_path / "scores.arrow")
    table = pa.ipc.open_file(str(tmp_path / "scores.arrow")).read_all()
    assert table.column("source").to_pylist() == ["web", "百科", "百科"] * 2
    assert table.schema.metadata[b"fingerprint"].decode() == scores_of().fingerprint


def test_nats_that_are_no_number_are_kept(tmp_path: Path) -> None:
    scores = replace(scores_of(3), nats=np.array([np.nan, np.inf, 1.0]))
    scores.save(tmp_path / "scores.arrow")
    found = DocumentScores.load(tmp_path / "scores.arrow").nats
    assert np.array_equal(found, scores.nats, equal_nan=True)


@pytest.mark.parametrize("place", range(0, 100, 7))
def test_a_damaged_file_is_named(tmp_path: Path, place: int) -> None:
    path = tmp_path / "scores.arrow"
    content = bytearray(scores_of().save(path) and path.read_bytes())
    path.write_bytes(content[: len(content) * place // 100])
    with pytest.raises(StoreError, match=f"scores in {path} are damaged"):
        DocumentScores.load(path)


def test_a_changed_figure_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "scores.arrow"
    scores = scores_of().save(path)
    content = path.read_bytes()
    assert content.count(scores.nats.tobytes()) == 1
    path.write_bytes(content.replace(scores.nats.tobytes(), (scores.nats - 0.01).tobytes()))
    with pytest.raises(StoreError, match="not those written"):
        DocumentScores.load(path)


def rewritten(path: Path, change: Callable[[Any], Any]) -> None:
    table = change(pa.ipc.open_file(pa.BufferReader(path.read_bytes())).read_all())
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def test_a_newer_and_another_form_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "scores.arrow"
    scores_of().save(path)
    rewritten(path, lambda t: t.replace_schema_metadata({**t.schema.metadata, b"format_version": b"99"}))
    with pytest.raises(FormatError, match="format version 99"):
        DocumentScores.load(path)
    scores_of().save(path)
    rewritten(path, lambda table: table.drop_columns(["nats"]))
    with pytest.raises(StoreError, match="its columns are"):
        DocumentScores.load(path)
    with pytest.raises(StoreError, match="there are no scores"):
        DocumentScores.load(tmp_path / "missing.arrow")


@given(order=st.permutations(range(6)))
def test_the_fingerprint_knows_no_order_and_no_nats(order: list[int]) -> None:
    scores = scores_of()
    mixed = replace(scores, **{name: getattr(scores, name)[order] for name in COLUMNS})
    assert replace(mixed, nats=np.zeros(6), weights="", block_size=1).fingerprint == scores.fingerprint


@given(name=st.sampled_from(["hashes", "text_bytes", "sources", "groups"]), row=st.integers(0, 5))
def test_the_fingerprint_knows_every_document(name: str, row: int) -> None:
    scores = scores_of()
    column = getattr(scores, name).copy()
    column[row] = "x" if column.dtype.kind == "U" else column[row] - np.ones((), column.dtype)
    assert replace(scores, **{name: column}).fingerprint != scores.fingerprint


def test_parts_add_up_to_the_whole() -> None:
    scores = scores_of(40)
    for parts in (scores.by("source"), scores.by("group")):
        whole = sum(parts.values(), Score())
        assert (whole.documents, whole.tokens, whole.text_bytes) == (40, 820, scores.text_bytes.sum())
        assert whole.nats == pytest.approx(scores.nats.sum())
    assert list(scores.by("group")) == ["new", "old"]
    assert scores.by("group")["new"].documents == 20


def test_figures_and_table_say_the_same() -> None:
    scores = scores_of(40)
    figures = scores.figures()
    assert figures["documents"] == 40
    assert figures["bits_per_byte"] == scores.total.bits_per_byte
    assert set(figures["groups"]) == {"old", "new"}
    assert set(figures["sources"]) == {"web", "百科"}
    assert figures["perplexity"] == scores.total.perplexity
    rows = scores.rows()
    assert [row["text"] for row in rows] == ["all", "new", "old", "web", "百科"]
    assert rows[0]["bits per byte"] == f"{scores.total.bits_per_byte:.4f}"
    assert rows[0]["perplexity"] == f"{scores.total.perplexity:,.2f}"
    with pytest.raises(CorpusError, match="no text"):
        scores_of(0).figures()
