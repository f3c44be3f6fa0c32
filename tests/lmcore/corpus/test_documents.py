"""No byte is lost, whatever the file holds."""

import gzip
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lmcore.corpus.documents import Document
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_documents
from lmcore.corpus.remote import hash_stored
from lmcore.corpus.scan import scan
from lmcore.errors import CorpusError
from lmcore.settings.config import CorpusConfig

LINE_END = re.compile(rb"\n|\r(?:\r?\n)?")
PIECES = [
    b"a",
    b"\n",
    b"\r\n",
    b"\r",
    b" ",
    b"\t",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    "あ".encode(),
    b"{",
    b'{"text":"x"}\n',
]
hostile = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join) | st.binary(max_size=200)
every_document = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read(path: Path, **options: object) -> tuple[list[Document], Ledger]:
    config = CorpusConfig.model_validate({"paths": [str(path)], "include": ["*"], **options})
    ledger = Ledger()
    file = SourceFile(str(path), path.stat().st_size, hash_stored(str(path)))  # whatever its beginning looks like
    return list(read_documents(file, config, ledger)), ledger


def written(tmp_path: Path, name: str, content: bytes) -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def texts(tmp_path: Path, name: str, content: bytes, **options: object) -> list[str]:
    return [document.text for document in read(written(tmp_path, name, content), **options)[0]]


def assert_accounts_for(documents: list[Document], ledger: Ledger, length: int) -> None:
    assert ledger.unaccounted_bytes == 0
    assert ledger.source_bytes == length
    spans = [(d.offset, d.length) for d in documents] + [(s.offset, s.length) for s in ledger.skipped]
    end = 0
    for offset, size in sorted(spans):
        assert offset >= end
        end = offset + size
    assert end <= length


@every_document
@given(
    content=hostile,
    unit=st.sampled_from(["line", "paragraph", "file"]),
    limit=st.sampled_from([1, 3, 10, 10**6]),
)
def test_every_byte_of_a_text_is_accounted_for(tmp_path: Path, content: bytes, unit: str, limit: int) -> None:
    documents, ledger = read(written(tmp_path, "x.txt", content), document=unit, max_document_bytes=limit)
    assert_accounts_for(documents, ledger, len(content))
    for document in documents:
        assert content[document.offset : document.offset + document.length].decode() == document.text


@every_document
@given(content=hostile, limit=st.sampled_from([5, 10**6]))
def test_every_byte_of_json_lines_is_accounted_for(tmp_path: Path, content: bytes, limit: int) -> None:
    documents, ledger = read(written(tmp_path, "x.jsonl", content), max_document_bytes=limit)
    assert_accounts_for(documents, ledger, len(content))
    for document in documents:
        assert json.loads(content[document.offset : document.offset + document.length])["text"] == document.text


@every_document
@given(members=st.lists(hostile, min_size=1, max_size=4), cut=st.integers(0, 40), tail=st.binary(max_size=5))
def test_every_byte_of_a_gzip_is_accounted_for(tmp_path: Path, members: list[bytes], cut: int, tail: bytes) -> None:
    stored = b"".join(gzip.compress(member) for member in members)
    whole = written(tmp_path, "x.txt.gz", stored)
    documents, ledger = read(whole)
    assert_accounts_for(documents, ledger, sum(map(len, members)))
    stored = stored[: max(0, len(stored) - cut)] + tail
    documents, ledger = read(written(tmp_path, "x.txt.gz", stored))
    assert_accounts_for(documents, ledger, ledger.source_bytes)
    assert ledger.stored_bytes == len(stored)


def plain_texts(content: bytes, unit: str, limit: int) -> list[str]:
    """A second, simple reading of a plain text, to compare with."""
    content = content.removeprefix(b"\xef\xbb\xbf")
    if unit == "file":
        pieces = [content]
    elif unit == "line":
        pieces = LINE_END.split(content)
    else:
        lines = [match[0] for match in re.finditer(rb"[^\r\n]*(?:\n|\r(?:\r?\n)?|\Z)", content)]
        pieces = [
            re.sub(rb"(?:\n|\r(?:\r?\n)?)\Z", b"", b"".join(group))
            for filled, group in itertools.groupby(lines, lambda line: bool(line.strip()))
            if filled
        ]
    readable = [piece for piece in pieces if len(piece) <= limit and is_utf8(piece)]
    return [piece.decode() for piece in readable if piece.decode().strip()]


def is_utf8(content: bytes) -> bool:
    try:
        return bool(content.decode()) or True
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
@every_document
@given(content=hostile, limit=st.integers(1, 40))
def test_the_documents_are_those_of_a_simple_reading(tmp_path: Path, unit: str, content: bytes, limit: int) -> None:
    if unit == "paragraph":  # a blank line above the limit counts as text: what was streamed past stays so
        assume(all(len(line) <= limit for line in content.split(b"\n") if not line.strip()))
    documents = read(written(tmp_path, "x.txt", content), document=unit, max_document_bytes=limit)[0]
    assert [document.text for document in documents] == plain_texts(content, unit, limit)


@pytest.mark.parametrize("unit", ["line", "paragraph", "file"])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_document_of_exactly_the_limit_is_kept(tmp_path: Path, unit: str, ending: bytes) -> None:
    length = 10 + len(ending) * (unit == "file")
    path = written(tmp_path, "x.txt", b"x" * 10 + ending)
    assert len(read(path, document=unit, max_document_bytes=length)[0]) == 1
    documents, ledger = read(path, document=unit, max_document_bytes=length - 1)
    assert ([skip.reason for skip in ledger.skipped], documents) == (["too_long"], [])


@every_document
@given(members=st.lists(hostile, min_size=1, max_size=4), data=st.data())
def test_a_truncated_archive_gives_a_beginning_and_says_so(
    tmp_path: Path, members: list[bytes], data: st.DataObject
) -> None:
    parts = [gzip.compress(member) for member in members]
    stored = b"".join(parts)
    cut = data.draw(st.integers(0, len(stored) - 1))
    assume(cut not in itertools.accumulate(map(len, parts)))  # between two members nobody can see it
    whole = read(written(tmp_path, "x.txt.gz", stored))[0]
    documents, ledger = read(written(tmp_path, "x.txt.gz", stored[:cut]))
    assert documents == whole[: len(documents)]
    assert ledger.skipped[-1].reason == "truncated_archive"


@every_document
@given(content=hostile, garbage=st.binary(min_size=1, max_size=5))
def test_garbage_after_a_gzip_costs_no_text(tmp_path: Path, content: bytes, garbage: bytes) -> None:
    assume(garbage.lstrip(b"\0")[:1] not in (b"", b"\x1f"))
    plain, plain_ledger = read(written(tmp_path, "x.txt", content))
    documents, ledger = read(written(tmp_path, "x.txt.gz", gzip.compress(content) + garbage))
    assert documents == plain
    assert ledger.skipped_bytes == plain_ledger.skipped_bytes
    assert ledger.skipped[-1].reason == "garbage_after_archive"
    assert ledger.undecodable_stored_bytes == len(garbage.lstrip(b"\0"))


@every_document
@given(content=hostile, data=st.data())
def test_a_changed_byte_of_a_gzip_is_noticed_or_harmless(tmp_path: Path, content: bytes, data: st.DataObject) -> None:
    stored = bytearray(gzip.compress(content))
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    documents, ledger = read(written(tmp_path, "x.txt.gz", bytes(stored)))
    assert ledger.unaccounted_bytes == 0
    assert ledger.stored_bytes == len(stored) >= ledger.undecodable_stored_bytes
    if not {"damaged_archive", "truncated_archive", "garbage_after_archive"} & ledger.by_reason().keys():
        assert documents == read(written(tmp_path, "x.txt", content))[0]  # it was the header's time, say


def test_lines_paragraphs_files(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbfa\r\nb \n\n \t\nc\nd"
    assert texts(tmp_path, "x.txt", content, document="line") == ["a", "b ", "c", "d"]
    assert texts(tmp_path, "x.txt", content, document="paragraph") == ["a\r\nb ", "c\nd"]
    assert texts(tmp_path, "x.txt", content, document="file") == ["a\r\nb \n\n \t\nc\nd"]
    assert texts(tmp_path, "x.txt", content) == ["a", "b ", "c", "d"]
    assert texts(tmp_path, "x.py", content) == ["a\r\nb \n\n \t\nc\nd"]


def test_a_bad_line_costs_that_line(tmp_path: Path) -> None:
    documents, ledger = read(written(tmp_path, "x.txt", b"one\ntw\xffo\nth\0ree\n"))
    assert [document.text for document in documents] == ["one", "th\0ree"]
    [skip] = ledger.skipped
    assert (skip.offset, skip.length, skip.reason) == (4, 4, "invalid_utf8")


def test_each_kind_of_bad_json_has_its_reason(tmp_path: Path) -> None:
    lines = [
        b'{"text": "good"}',
        b"{",
        b"[" * 100_000,
        b"[1]",
        b'{"body": "x"}',
        b'{"text": 1}',
        b'{"text": "  "}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xff"}',
        b'{"text": "' + b"y" * 200_000 + b'"}',
    ]
    documents, ledger = read(written(tmp_path, "x.jsonl", b"\n".join(lines)), max_document_bytes=150_000)
    assert [document.text for document in documents] == ["good"]
    assert [skip.reason for skip in ledger.skipped] == [
        "invalid_json",
        "invalid_json",
        "not_an_object",
        "no_text_field",
        "text_is_no_string",
        "empty_text",
        "lone_surrogate",
        "invalid_utf8",
        "too_long",
    ]


def test_another_field_can_hold_the_text(tmp_path: Path) -> None:
    assert texts(tmp_path, "x.jsonl", b'{"body": "b", "text": "t"}', text_field="body") == ["b"]
    nested = b'{"meta": {"body": "n"}, "meta.own": "o", "list": [1]}'
    assert texts(tmp_path, "x.jsonl", nested, text_field="meta.body") == ["n"]
    assert texts(tmp_path, "x.jsonl", nested, text_field="meta.own") == ["o"]
    for field in ("meta.other", "list.a", "none.a"):
        assert read(tmp_path / "x.jsonl", text_field=field)[1].skipped[0].reason == "no_text_field"


BIG = b"".join(b"%d \xe8\xa1\x8c\n" % number for number in range(50_000))


@pytest.mark.parametrize(
    ("damage", "reason", "least"),
    [
        (lambda stored: stored[:-20], "truncated_archive", 0.9),
        (lambda stored: stored[: len(stored) // 2], "truncated_archive", 0.4),
        (lambda stored: stored[:-1000] + bytes(byte ^ 255 for byte in stored[-1000:]), "damaged_archive", 0.8),
        (lambda stored: stored + b"garbage", "garbage_after_archive", 1.0),
        (lambda stored: b"no gzip at all", "damaged_archive", 0.0),
    ],
)
def test_of_a_damaged_gzip_all_that_can_be_unpacked_is_kept(
    tmp_path: Path, damage: object, reason: str, least: float
) -> None:
    stored = damage(gzip.compress(BIG))  # type: ignore[operator]
    documents, ledger = read(written(tmp_path, "x.txt.gz", stored))
    assert ledger.unaccounted_bytes == 0
    assert ledger.skipped[-1].reason == reason
    assert len(documents) >= least * 50_000
    # Behind the damage a decompressor gives rubbish for a while before it notices.
    sure = int(least * 50_000)
    assert [document.text for document in documents[:sure]] == BIG.decode().splitlines()[:sure]


def test_concatenated_and_zero_padded_gzips_are_one_text(tmp_path: Path) -> None:
    stored = gzip.compress(b"one\nt") + gzip.compress(b"wo\n") + bytes(3_000_000)
    assert texts(tmp_path, "x.txt.gz", stored) == ["one", "two"]


def test_a_file_that_changes_between_scan_and_read_is_an_error(tmp_path: Path) -> None:
    path = written(tmp_path, "x.txt", b"one\n")
    config = CorpusConfig(paths=[str(path)])
    [file] = scan(config).files
    path.write_bytes(b"two\n")
    with pytest.raises(CorpusError, match="changed while read: start again"):
        list(read_documents(file, config, Ledger()))


_READ_HUGE_LINE = """
import resource, sys
from lmcore.settings.config import CorpusConfig
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.scan import scan
from lmcore.corpus.readers import read_documents
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.remote import hash_stored
config, ledger = CorpusConfig(paths=[sys.argv[1]], document=sys.argv[2]), Ledger()
[file] = scan(config).files
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
texts = [document.text for document in read_documents(file, config, ledger)]
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(texts, ledger.unaccounted_bytes, [(s.length, s.reason) for s in ledger.skipped], grown < 120_000)
"""


@pytest.mark.parametrize(("unit", "skipped"), [("line", 200_000_001), ("paragraph", 200_000_002)])
def test_a_line_of_200_mb_is_streamed_past(tmp_path: Path, unit: str, skipped: int) -> None:
    with open(tmp_path / "x.txt", "wb") as file:
        file.write(b"before\n\n")
        for _ in range(200):
            file.write(b"x" * 1_000_000)
        file.write(b"\n\nafter\n")
    command = [sys.executable, "-c", _READ_HUGE_LINE, str(tmp_path / "x.txt"), unit]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out == f"['before', 'after'] 0 [({skipped}, 'too_long')] True\n"
