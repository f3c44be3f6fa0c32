"""The documents alone decide where text ranges end, and each byte outside of ranges is counted."""

import bz2
import gzip
import lzma
import subprocess
import sys
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

from lmcore.corpus import range_cutter, readers
from lmcore.corpus.documents import parse
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_documents, read_ranges
from lmcore.corpus.remote import hash_stored
from lmcore.corpus.scan import scan
from lmcore.corpus.text_range import TextRange
from lmcore.errors import FileChangedError
from lmcore.settings.config import CorpusConfig

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": partial(zstd.compress, options={zstd.CompressionParameter.checksum_flag: 1}),
}
pieces = st.lists(
    st.sampled_from(
        [b"a", b"bc\n", b"\n", b"\r\n", b" \t", b" \n", b"\n" * 300, b"x" * 40, b"\xff", "日本\n".encode()]
    ),
    max_size=200,
).map(b"".join)


def cut(path: Path, **options: object) -> tuple[list[TextRange], Ledger]:
    config = CorpusConfig.model_validate({"paths": [str(path)], "include": ["*"], "chunk_bytes": 1000, **options})
    ledger = Ledger()
    file = SourceFile(str(path), path.stat().st_size, hash_stored(str(path)))  # whatever its beginning looks like
    return list(read_ranges(file, config, ledger)), ledger


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=pieces,
    unit=st.sampled_from(["line", "paragraph", "file"]),
    limit=st.sampled_from([10, 10**6]),
    block=st.integers(1, 50),
)
def test_ranges_depend_neither_on_blocks_nor_on_compression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, unit: str, limit: int, block: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(range_cutter, "_LONGEST_BLANK_LINE", 4)
        expected = None
        for size, suffix in [(2**20, ""), (block, ""), (2**20, ".zst"), (block, ".gz")]:
            patch.setattr(readers, "_READ_BYTES", size)
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


def test_ranges_are_neither_short_nor_long(tmp_path: Path) -> None:
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
    monkeypatch.setattr("lmcore.corpus.compression._HARMLESS_BYTES", 2**20)
    path = tmp_path / f"x.txt{suffix}"
    path.write_bytes(COMPRESS[suffix](b"before\n" + b"0" * 20_000_000))
    config = CorpusConfig(paths=[str(path)], max_expansion=50)
    ledger = Ledger()
    assert [d.text for d in read_documents(scan(config).files[0], config, ledger)][:1] == ["before"]
    assert ledger.skipped[-1].reason == "decompression_bomb"
    assert ledger.source_bytes < 2_500_000
    assert ledger.unaccounted_bytes == 0


@pytest.mark.parametrize("suffix", [".bz2", ".zst"])
def test_stored_bytes_that_give_no_text_are_counted(tmp_path: Path, suffix: str) -> None:
    member = COMPRESS[suffix](b"".join(b"%d\n" % number for number in range(9_999)))
    for before in (b"", member):
        path = tmp_path / f"x.txt{suffix}"
        path.write_bytes(before + member[:-200])
        ledger = cut(path)[1]
        assert (ledger.undecodable_stored_bytes, ledger.skipped[0].reason) == (len(member) - 200, "truncated_archive")


def test_of_a_bomb_what_gave_text_is_not_counted_as_undecodable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lmcore.corpus.compression._STORED_BYTES", 2**10)
    monkeypatch.setattr("lmcore.corpus.compression._HARMLESS_BYTES", 2**23)
    stored = gzip.compress(b"\n" * 2**24)
    path = tmp_path / "x.txt.gz"
    path.write_bytes(stored)
    _, ledger = cut(path, chunk_bytes=16_000_000)
    assert ledger.skipped[0].reason == "decompression_bomb"
    assert ledger.source_bytes > 2**23
    assert 0.4 < ledger.undecodable_stored_bytes / len(stored) < 0.6


def test_a_million_blank_lines_are_one_separator(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"a\n" + b" \n\r\n" * 500_000 + b"b\n")
    config = CorpusConfig(paths=[str(path)])
    [span] = cut(path, chunk_bytes=16_000_000)[0]
    ledger = Ledger()
    assert [document.text for document in parse(span, config, ledger)] == ["a", "b"]
    assert (ledger.document_bytes, ledger.separator_bytes) == (2, 4 * 500_000 + 2)


ROWS = ["一つ", None, "", "two\nlines", "x" * 100, "最後"]


TYPES = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.dictionary(pa.int32(), pa.string())]


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather", "stream"])
@pytest.mark.parametrize("type_", TYPES, ids=str)
def test_tables_are_read_by_row(tmp_path: Path, kind: str, type_: pa.DataType) -> None:
    path = tmp_path / f"x.{kind}".replace("stream", "arrow")
    table = pa.table({"id": range(6), "body": pa.array(ROWS, pa.string()).cast(type_)})
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "feather":
        write_feather(table, path)
    else:
        with (pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file)(str(path), table.schema) as writer:
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


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    path.write_text("a")
    if name == "x.parquet":
        pq.write_table(pa.table({"text": ["a"]}), path)
    config = CorpusConfig(paths=[str(path)])
    [file] = scan(config).files
    path.unlink()
    with pytest.raises(FileChangedError, match="unreadable"):
        list(read_ranges(file, config, Ledger()))
    path.mkdir()
    with pytest.raises(FileChangedError, match="unreadable"):
        list(read_ranges(file, config, Ledger()))


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_text_may_stand_in_a_struct(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    write_table(pa.table({"meta": [{"body": "a", "n": 1}, None, {"body": "b", "n": 2}]}), path)
    found, _ = cut(path, text_field="meta.body")
    assert [span.content for span in found] == [b"ab"]
    for field, reason in (("meta.other", "no_text_field"), ("meta", "text_is_no_string")):
        assert cut(path, text_field=field)[1].skipped[0].reason == reason


def write_table(table: pa.Table, path: Path) -> None:
    if path.suffix == ".parquet":
        pq.write_table(table, path, use_dictionary=False)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)


def test_a_column_that_stands_twice_or_is_no_text_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table([pa.array(["a"]), pa.array(["b"])], names=["text", "text"]), path)
    assert cut(path)[1].skipped[0].reason == "ambiguous_text_field"
    pq.write_table(pa.table({"text": [[1]]}), path)
    assert cut(path)[1].skipped[0].reason == "text_is_no_string"
    assert "column text is list<element: int64>, not text" in caplog.text


_READ_DAMAGED = """
import random, sys
from pathlib import Path
from lmcore.settings.config import CorpusConfig
from lmcore.corpus.scan import scan
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_ranges
path = Path(sys.argv[1])
content = path.read_bytes()
for seed in range(150):
    damaged, chance = bytearray(content), random.Random(seed)
    damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
    path.write_bytes(damaged)
    config = CorpusConfig(paths=[str(path)])
    list(read_ranges(scan(config).files[0], config, Ledger()))
"""


@pytest.mark.parametrize("kind", ["parquet", "arrow", "feather"])
@pytest.mark.parametrize("type_", [pa.string(), pa.dictionary(pa.int32(), pa.string())], ids=str)
def test_no_flipped_bit_ends_the_process(tmp_path: Path, kind: str, type_: pa.DataType) -> None:
    path = tmp_path / f"x.{kind}"
    table = pa.table({"text": pa.array([f"{i % 50} text" for i in range(200)]).cast(type_)})
    write_feather(table, path) if kind == "feather" else write_table(table, path)
    subprocess.run([sys.executable, "-c", _READ_DAMAGED, str(path)], check=True, capture_output=True)


def test_rows_before_damage_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.arrow"
    schema = pa.schema({"text": pa.string()})
    with pa.ipc.new_stream(str(path), schema) as writer:
        for text in ("first", "second"):
            writer.write_batch(pa.record_batch([[text]], schema=schema))
    path.write_bytes(path.read_bytes()[:-60])
    found, ledger = cut(path)
    assert [span.content for span in found] == [b"first"]
    assert ledger.skipped[0].reason == "damaged_table"


def test_a_table_may_be_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmcore.corpus.compression._HARMLESS_BYTES", 2**20)
    path = tmp_path / "x.parquet"
    for texts in (["same" * 10_000] * 1000, [None] * 10_000_000, ["x" * 10_000_000]):
        pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, compression="zstd")
        _, ledger = cut(path, chunk_bytes=16_000_000)
        assert ledger.skipped[-1].reason == "decompression_bomb"
        assert ledger.source_bytes < 3_000_000


_READ_TABLE = """
import resource, sys
from lmcore.settings.config import CorpusConfig
from lmcore.corpus.scan import scan
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_ranges
config = CorpusConfig(paths=[sys.argv[1]], max_expansion=1e9, chunk_bytes=4_000_000)
[file] = scan(config).files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(sum(span.stop - span.start for span in read_ranges(file, config, Ledger())))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 120_000)
"""


@pytest.mark.parametrize("kind", ["arrow", "parquet"])
def test_memory_does_not_grow_with_a_table(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    table = pa.table({"text": ["word" * 250_000] * 300})
    if kind == "arrow":
        write_table(table, path)
    else:
        pq.write_table(table, path)
    out = subprocess.run([sys.executable, "-c", _READ_TABLE, str(path)], capture_output=True, text=True, check=True)
    assert out.stdout == "300\nTrue\n"
