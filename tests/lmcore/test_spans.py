"""Where spans end depends on the documents alone, and nothing stands outside of them unaccounted."""

import bz2
import gzip
import lzma
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from backports import zstd
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.feather import write_feather

from lmcore import spans
from lmcore.config import CorpusConfig
from lmcore.corpus import scan
from lmcore.documents import parse, read_documents
from lmcore.errors import FileChangedError
from lmcore.ledger import Ledger
from lmcore.spans import Span, read_spans

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": partial(zstd.compress, options={zstd.CompressionParameter.checksum_flag: 1}),
}
pieces = st.lists(
    st.sampled_from([b"a", b"bc\n", b"\n", b"\r\n", b" \t", b" \n", b"x" * 40, b"\xff", "日本\n".encode()]),
    max_size=200,
).map(b"".join)


def cut(path: Path, **options: object) -> tuple[list[Span], Ledger]:
    config = CorpusConfig.model_validate({"paths": [str(path)], "include": ["*"], "chunk_bytes": 1000, **options})
    ledger = Ledger()
    return list(read_spans(scan(config).files[0], config, ledger)), ledger


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=pieces,
    unit=st.sampled_from(["line", "paragraph", "file"]),
    limit=st.sampled_from([10, 10**6]),
    block=st.integers(1, 50),
)
def test_spans_depend_neither_on_blocks_nor_on_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, unit: str, limit: int, block: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(spans, "_LONGEST_BLANK_LINE", 64)
        expected = None
        for size, suffix in [(2**20, ""), (block, ""), (2**20, ".zst"), (block, ".gz")]:
            patch.setattr(spans, "_READ_BYTES", size)
            path = tmp_path / f"x.txt{suffix}"
            path.write_bytes(COMPRESS[suffix](content))
            found, ledger = cut(path, document=unit, max_document_bytes=limit)
            places = [(span.start, span.stop, span.content) for span in found]
            skips = [(skip.offset, skip.length, skip.reason) for skip in ledger.skipped]
            expected = expected or (places, skips)
            assert (places, skips) == expected
            assert b"".join(span.content for span in found) == content or skips
            assert ledger.source_bytes == len(content) == sum(len(c) for *_, c in places) + ledger.skipped_bytes


def test_an_insertion_moves_what_follows_and_cuts_it_the_same(tmp_path: Path) -> None:
    lines = [f"{number} {'文' * (number % 37)}\n" for number in range(3000)]
    path = tmp_path / "x.txt"
    path.write_text("".join(lines))
    before, _ = cut(path)
    path.write_text("".join([*lines[:1000], "new\n", *lines[1000:]]))
    after, _ = cut(path)
    digests = {span.digest() for span in before}
    assert len(before) > 50
    assert len([span for span in after if span.digest() not in digests]) <= 3


def test_spans_are_neither_short_nor_long(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("".join(f"{number}\n" for number in range(20_000)))
    sizes = [len(span.content) for span in cut(path)[0]][:-1]
    assert min(sizes) >= 250
    assert max(sizes) <= 4000 + 10
    assert 800 < np.mean(sizes) < 1800


@pytest.mark.parametrize("same", [b"same\n", b"\n"])
def test_documents_that_are_all_the_same_are_cut_too(tmp_path: Path, same: bytes) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(same * 10_000)
    assert len(cut(path)[0]) >= 2


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("damage", ["none", "truncated", "garbage", "flipped"])
def test_every_compression_gives_what_can_be_unpacked(tmp_path: Path, suffix: str, damage: str) -> None:
    content = b"".join(b"%d \xe8\xa1\x8c\n" % number for number in range(60_000))
    stored = bytearray(COMPRESS[suffix](content))
    if damage == "truncated":
        del stored[-len(stored) // 3 :]
    elif damage == "garbage":
        stored += b"\1garbage"
    elif damage == "flipped":
        stored[len(stored) // 2] ^= 255
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(stored)
    config = CorpusConfig(paths=[str(path)])
    ledger = Ledger()
    texts = [document.text for document in read_documents(scan(config).files[0], config, ledger)]
    assert ledger.unaccounted_bytes == 0
    assert ledger.stored_bytes == len(stored) >= ledger.undecodable_stored_bytes
    if suffix and damage != "none":
        reasons = {"truncated": "truncated", "garbage": "garbage_after", "flipped": "damaged"}
        assert ledger.skipped[-1].reason == f"{reasons[damage]}_archive"
    if damage in ("none", "garbage"):
        assert texts[:60_000] == content.decode().splitlines()


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".xz", ".zst"])
def test_a_bomb_is_cut_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.setattr("lmcore.compression._HARMLESS_BYTES", 2**20)
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"before\n" + b"0" * 20_000_000))
    config = CorpusConfig(paths=[str(path)], max_expansion=50)
    ledger = Ledger()
    assert [d.text for d in read_documents(scan(config).files[0], config, ledger)][:1] == ["before"]
    assert ledger.skipped[-1].reason == "decompression_bomb"
    assert ledger.source_bytes < 2_500_000
    assert ledger.unaccounted_bytes == 0


ROWS = ["一つ", None, "", "two\nlines", "x" * 100, "最後"]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize("type_", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_tables_are_read_by_row(tmp_path: Path, kind: str, type_: pa.DataType) -> None:
    path = tmp_path / f"x.{kind}"
    table = pa.table({"id": range(6), "body": pa.array(ROWS, pa.string()).cast(type_)})
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "feather":
        write_feather(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    config = CorpusConfig(paths=[str(path)], text_field="body", max_document_bytes=50)
    ledger = Ledger()
    documents = list(read_documents(scan(config).files[0], config, ledger))
    assert [(d.text, d.offset) for d in documents] == [("一つ", 0), ("two\nlines", 3), ("最後", 5)]
    assert [(s.offset, s.length, s.reason) for s in ledger.skipped] == [
        (1, 0, "empty_text"),
        (2, 0, "empty_text"),
        (4, 100, "too_long"),
    ]
    assert ledger.source_bytes == sum(len((row or "").encode()) for row in ROWS)
    assert ledger.unaccounted_bytes == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(st.sampled_from([None, "", " ", "a", "日本", "x" * 40]), min_size=1, max_size=200),
    group=st.integers(1, 50),
    limit=st.sampled_from([10, 10**6]),
)
def test_every_row_is_a_document_or_a_skip_wherever_it_stands(
    tmp_path: Path, rows: list[str | None], group: int, limit: int
) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"text": pa.array(rows, pa.string())}), path, row_group_size=group)
    options = {"chunk_bytes": 1000, "max_document_bytes": limit}
    config = CorpusConfig.model_validate({"paths": [str(path)], **options})
    ledger = Ledger()
    documents = list(read_documents(scan(config).files[0], config, ledger))
    kept = {i: row for i, row in enumerate(rows) if row and row.strip() and len(row.encode()) <= limit}
    assert {document.offset: document.text for document in documents} == kept
    assert {skip.offset for skip in ledger.skipped} == set(range(len(rows))) - kept.keys()
    assert ledger.unaccounted_bytes == 0


def test_rows_of_a_table_are_cut_by_content(tmp_path: Path) -> None:
    texts = [f"{number} {'文' * (number % 37)}" for number in range(10_000)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", row_group_size=1000)
    pq.write_table(pa.table({"text": ["new", *texts]}), tmp_path / "b.parquet", row_group_size=777)
    before, after = (cut(tmp_path / name)[0] for name in ("a.parquet", "b.parquet"))
    digests = {span.digest() for span in before}
    assert len([span for span in after if span.digest() not in digests]) <= 3
    assert [(a.stop, b.start) for a, b in pairwise(after) if a.stop != b.start] == []
    config = CorpusConfig(paths=["x"])
    assert [d.text for span in after for d in parse(span, config, Ledger())] == ["new", *texts]


@pytest.mark.parametrize(
    ("column", "content", "reason"),
    [
        ("other", None, "no_text_field"),
        ("text", [1, 2], "text_is_no_string"),
        ("text", b"no parquet", "damaged_table"),
    ],
)
def test_a_table_that_cannot_be_read_costs_itself(tmp_path: Path, column: str, content: object, reason: str) -> None:
    path = tmp_path / "x.parquet"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        pq.write_table(pa.table({column: content or ["a"]}), path)
    found, ledger = cut(path)
    assert found == []
    assert [skip.reason for skip in ledger.skipped] == [reason]


@pytest.mark.parametrize("name", ["x.txt", "x.parquet"])
def test_a_file_that_is_gone_or_a_folder_by_now_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pq.write_table(pa.table({"text": ["a"]}), path)
    config = CorpusConfig(paths=[str(path)])
    [file] = scan(config).files
    path.unlink()
    with pytest.raises(FileChangedError, match="unreadable"):
        list(read_spans(file, config, Ledger()))
    path.mkdir()
    with pytest.raises(FileChangedError, match="unreadable"):
        list(read_spans(file, config, Ledger()))
