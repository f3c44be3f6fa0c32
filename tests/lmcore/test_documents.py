"""Every byte of a corpus is in a document, a separator or a named skip, whatever the bytes are."""

import bz2
import gzip
import hashlib
import itertools
import json
import os
import re
import sysconfig
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from lmcore.config import CorpusConfig
from lmcore.corpus import describe, scan, scan_again
from lmcore.documents import Document, Ledger, Skip, read_documents
from lmcore.errors import CorpusError

BOM = b"\xef\xbb\xbf"
UNITS = ["line", "paragraph", "file"]
GZIP_PROBLEMS = {"truncated_gzip", "damaged_gzip", "garbage_after_gzip"}

law = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])

_nasty = [b"\n", b"\n\n", b"\r\n", b"\r", b" ", b"\t", b"\0", BOM, b"\xff", b"\xe3\x81", "\u3000".encode()]
_nasty += ["日本".encode(), "😀".encode(), b"abc", b"x" * 30, b"\xed\xa0\x80"]
raw_bytes = st.lists(st.sampled_from(_nasty) | st.binary(max_size=8), max_size=30).map(b"".join)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "other"]), inner, max_size=2),
    max_leaves=5,
)
json_rows = json_values.map(lambda value: json.dumps(value).encode()) | st.builds(
    lambda text, ascii_only: json.dumps({"id": 1, "text": text}, ensure_ascii=ascii_only).encode(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.booleans(),
)
json_lines = st.lists(json_rows | st.sampled_from(_nasty) | st.just(b'{"text": "\\ud800"}'), max_size=12).map(b"\n".join)


def read(path: Path, **changes: Any) -> tuple[list[Document], Ledger]:
    config = CorpusConfig(paths=[str(path)], **{"include": ["*"], **changes})
    ledger = Ledger()
    found = scan(config)
    return [document for file in found.files for document in read_documents(file, config, ledger)], ledger


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def reasons(ledger: Ledger) -> list[str]:
    return [skip.reason for skip in ledger.skipped]


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


def assert_accounted(raw: bytes, documents: list[Document], ledger: Ledger, is_jsonl: bool, limit: int) -> None:
    """Documents and skips are disjoint and are what they say; all the rest is white space and a BOM."""
    assert ledger.unaccounted_bytes == 0
    assert ledger.source_bytes == len(raw)
    assert ledger.documents == len(documents)
    pieces: list[Document | Skip] = [*documents, *ledger.skipped]
    end, outside = 0, b""
    for piece in sorted(pieces, key=lambda piece: (piece.offset, piece.length)):
        assert piece.offset >= end
        outside += raw[end : piece.offset]
        end = piece.offset + piece.length
        assert end <= len(raw)
    outside += raw[end:]
    assert outside.removeprefix(BOM).strip() == b""
    assert len(outside) == ledger.separator_bytes
    for document in documents:
        content = raw[document.offset : document.offset + document.length]
        assert document.utf8 == document.text.encode()
        assert document.digest == hashlib.blake2b(document.utf8, digest_size=16).digest()
        assert document.text == (json.loads(content)["text"] if is_jsonl else content.decode())
        assert document.length <= limit
    for skip in ledger.skipped:
        assert_reason_holds(raw[skip.offset : skip.offset + skip.length], skip.reason, limit)


def assert_reason_holds(content: bytes, reason: str, limit: int) -> None:
    match reason:
        case "too_long":
            assert len(content) > limit
        case "invalid_utf8":
            with pytest.raises(UnicodeDecodeError):
                content.decode()
        case "invalid_json":
            with pytest.raises(ValueError, match=""):
                json.loads(content.decode())
        case "not_an_object":
            assert not isinstance(json.loads(content), dict)
        case "no_text_field":
            assert "text" not in json.loads(content)
        case "text_is_no_string":
            assert not isinstance(json.loads(content)["text"], str)
        case "lone_surrogate":
            with pytest.raises(UnicodeEncodeError):
                json.loads(content)["text"].encode()
        case "empty_text":
            text = content.decode()
            assert not (json.loads(text)["text"] if text.startswith("{") else text).strip()
        case "cut_off":
            assert content
        case _:
            assert reason in GZIP_PROBLEMS
            assert not content


def plain_texts(raw: bytes, unit: str, limit: int) -> list[str]:
    """A simple second reading of a plain text, to compare with."""
    raw = raw.removeprefix(BOM)
    if unit == "file":
        units = [raw]
    elif unit == "line":
        units = re.split(rb"\r?\n", raw)
    else:
        lines = raw.split(b"\n")
        numbered = itertools.groupby(enumerate(lines), lambda item: bool(item[1].strip()))
        groups = [list(group) for filled, group in numbered if filled]
        units = [
            joined if group[-1][0] == len(lines) - 1 else joined.removesuffix(b"\r")
            for group in groups
            for joined in [b"\n".join(line for _, line in group)]
        ]
    return [text for text in (_decoded(unit, limit) for unit in units) if text.strip()]


def _decoded(content: bytes, limit: int) -> str:
    try:
        return content.decode() if len(content) <= limit else ""
    except UnicodeDecodeError:
        return ""


# --- laws ---


@pytest.mark.parametrize("unit", UNITS)
@law
@given(raw=raw_bytes, limit=st.integers(1, 60))
def test_every_byte_of_any_plain_file_is_accounted_for(tmp_path: Path, unit: str, raw: bytes, limit: int) -> None:
    if unit == "paragraph":  # a blank line above the limit counts as text: streaming cannot take it back
        assume(all(len(line) <= limit for line in raw.split(b"\n") if not line.strip()))
    documents, ledger = read(write(tmp_path, "a.txt", raw), document=unit, max_document_bytes=limit)
    assert_accounted(raw, documents, ledger, False, limit)
    assert texts(documents) == plain_texts(raw, unit, limit)


@law
@given(raw=json_lines, limit=st.integers(1, 60))
def test_every_byte_of_any_jsonl_is_accounted_for(tmp_path: Path, raw: bytes, limit: int) -> None:
    documents, ledger = read(write(tmp_path, "a.jsonl", raw), max_document_bytes=limit)
    assert_accounted(raw, documents, ledger, True, limit)


def gzip_members(raw: bytes, cuts: list[int], padding: int = 0) -> bytes:
    edges = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    zeros = b"\0" * padding
    return b"".join(gzip.compress(raw[a:b], mtime=0) + zeros for a, b in itertools.pairwise(edges))


cut_points = st.lists(st.integers(0, 200), max_size=4)


@law
@given(raw=raw_bytes | json_lines, cuts=cut_points, padding=st.integers(0, 3), name=st.sampled_from(["a.txt", "a.jsonl"]))
def test_gzip_members_read_as_the_plain_file_does(
    tmp_path: Path, raw: bytes, cuts: list[int], padding: int, name: str
) -> None:
    stored = gzip_members(raw, cuts, padding)
    plain, packed = read(write(tmp_path, name, raw)), read(write(tmp_path, f"{name}.gz", stored))
    assert packed[0] == plain[0]
    assert packed[1].by_reason() == plain[1].by_reason()
    assert packed[1].separator_bytes == plain[1].separator_bytes
    assert packed[1].stored_bytes == len(stored)


@pytest.mark.parametrize("unit", UNITS)
@law
@given(raw=raw_bytes, cuts=cut_points, data=st.data())
def test_a_truncated_gzip_gives_a_beginning_and_says_so(
    tmp_path: Path, unit: str, raw: bytes, cuts: list[int], data: st.DataObject
) -> None:
    stored = gzip_members(raw, cuts)
    length = data.draw(st.integers(0, len(stored) - 1))
    documents, ledger = read(write(tmp_path, "a.txt.gz", stored[:length]), document=unit)
    assert_accounted(raw[: ledger.source_bytes], documents, ledger, False, 2**24)
    whole = read(write(tmp_path, "a.txt", raw), document=unit)[0]
    if length in member_ends(stored):  # a whole gzip file: nobody can see that members are missing
        assert not GZIP_PROBLEMS & set(reasons(ledger))
    else:
        assert ledger.skipped[-1].reason == "truncated_gzip"
        assert documents == whole[: len(documents)]


def member_ends(stored: bytes) -> set[int]:
    return {match.start() for match in re.finditer(re.escape(gzip.compress(b"", mtime=0)[:10]), stored)} - {0}


@law
@given(raw=raw_bytes, cuts=cut_points, data=st.data())
def test_a_damaged_gzip_gives_no_changed_text_unnoticed(
    tmp_path: Path, raw: bytes, cuts: list[int], data: st.DataObject
) -> None:
    stored = bytearray(gzip_members(raw, cuts))
    stored[data.draw(st.integers(0, len(stored) - 1))] ^= data.draw(st.integers(1, 255))
    documents, ledger = read(write(tmp_path, "a.txt.gz", bytes(stored)))
    assert ledger.unaccounted_bytes == 0
    assert ledger.stored_bytes == len(stored) >= ledger.undecodable_stored_bytes
    if not GZIP_PROBLEMS & set(reasons(ledger)):  # the byte said nothing about the text, a time for example
        assert documents == read(write(tmp_path, "a.txt", raw))[0]


@law
@given(raw=raw_bytes, garbage=st.binary(min_size=1, max_size=20).filter(lambda tail: tail.strip(b"\0")[:1] != b"\x1f"))
def test_garbage_after_a_gzip_costs_no_text(tmp_path: Path, raw: bytes, garbage: bytes) -> None:
    assume(garbage.strip(b"\0"))
    documents, ledger = read(write(tmp_path, "a.txt.gz", gzip.compress(raw, mtime=0) + garbage))
    plain = read(write(tmp_path, "a.txt", raw))
    assert documents == plain[0]
    assert reasons(ledger) == [*reasons(plain[1]), "garbage_after_gzip"]
    assert 0 < ledger.undecodable_stored_bytes <= len(garbage)


# --- single faults ---


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize("unit", UNITS)
def test_a_line_of_200_megabytes_is_streamed_past(tmp_path: Path, name: str, unit: str) -> None:
    path, size = tmp_path / name, 200 * 2**20
    if name.endswith(".gz"):
        once = gzip.compress(bytes(size // 8), 1)
        path.write_bytes(once * 8)
    else:
        with open(path, "wb") as file:
            file.truncate(size)
    with open(path, "ab") as file:
        end = b"\n\nthe end\n"
        file.write(gzip.compress(end) if name.endswith(".gz") else end)
    tracemalloc.start()
    try:
        documents, ledger = read(path, document=unit, max_document_bytes=2**20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 * 2**20
    assert texts(documents) == ([] if unit == "file" else ["the end"])
    assert reasons(ledger) == ["too_long"]
    assert ledger.skipped[0].length >= size
    assert ledger.unaccounted_bytes == 0


@pytest.mark.parametrize("unit", ["line", "paragraph"])
@pytest.mark.parametrize("ending", [b"", b"\n", b"\r\n"])
def test_a_document_of_exactly_the_limit_is_kept(tmp_path: Path, unit: str, ending: bytes) -> None:
    path = write(tmp_path, "a.txt", b"x" * 10 + ending)
    assert texts(read(path, document=unit, max_document_bytes=10)[0]) == ["x" * 10]
    assert reasons(read(path, document=unit, max_document_bytes=9)[1]) == ["too_long"]


def test_bad_lines_cost_only_themselves(tmp_path: Path) -> None:
    raw = b"\xef\xbb\xbfone\r\n\r\n\xff\xfe bad\r\ntwo \0 three\n" + "四".encode() + b"\r"
    documents, ledger = read(write(tmp_path, "a.txt", raw))
    assert texts(documents) == ["one", "two \0 three", "四\r"]
    assert [(skip.offset, skip.length, skip.reason) for skip in ledger.skipped] == [(10, 6, "invalid_utf8")]


def test_a_jsonl_row_without_text_says_why(tmp_path: Path) -> None:
    rows = ['{"text": "a"}', "{", "[1]", '{"x": 1}', '{"text": 3}', '{"text": " "}', '{"text": "\\ud800"}', "[" * 10**5]
    ledger = read(write(tmp_path, "a.jsonl", "\n".join(rows).encode()))[1]
    wanted = ["invalid_json", "not_an_object", "no_text_field", "text_is_no_string", "empty_text", "lone_surrogate"]
    assert reasons(ledger) == [*wanted, "invalid_json"]


def test_the_text_field_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.jsonl", b'{"body": "b", "text": "t"}')
    assert texts(read(path, text_field="body")[0]) == ["b"]


def test_a_document_is_what_the_name_says(tmp_path: Path) -> None:
    for name in ("a.txt", "a.md", "a.py"):
        write(tmp_path, name, b"one\ntwo\n")
    assert sorted(texts(read(tmp_path)[0])) == ["one", "one\ntwo\n", "one\ntwo\n", "two"]


def test_another_compression_under_a_gz_name_is_damage_not_text(tmp_path: Path) -> None:
    documents, ledger = read(write(tmp_path, "a.txt.gz", bz2.compress(b"text\n")))
    assert documents == []
    assert reasons(ledger) == ["damaged_gzip"]


# --- finding files ---


def names(folder: Path, **changes: Any) -> list[str]:
    found = scan(CorpusConfig(paths=[str(folder)], **changes))
    return [os.path.relpath(file.path, folder) for file in found.files]


def test_a_folder_is_read_without_hidden_excluded_and_other_files(tmp_path: Path) -> None:
    for name in ["b/c.txt", "a.txt", ".hidden.txt", ".git/a.txt", "skip/a.txt", "b/skip.txt", "a.png", "A.TXT"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path, name, b"text")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "dangling.txt").symlink_to("nowhere.txt")
    config = CorpusConfig(paths=[str(tmp_path)], exclude=["skip*"])
    assert names(tmp_path, exclude=["skip*"]) == ["a.txt", "b/c.txt"]
    assert scan(config).ignored_files == 6


def test_links_that_form_a_loop_end_and_a_file_is_read_once(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder, "a.txt", b"text")
    (folder / "loop").symlink_to(folder)
    (folder / "again.txt").symlink_to("a.txt")
    (tmp_path / "other").symlink_to(folder)
    (folder / "self.txt").symlink_to("self.txt")
    assert len(names(tmp_path)) == 1


def test_a_corpus_keeps_its_id_under_other_names_and_its_listing_does_not(tmp_path: Path) -> None:
    write(tmp_path, "a.txt", b"one")
    config = CorpusConfig(paths=[str(tmp_path)])
    before = describe(scan(config), config)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    after = describe(scan(config), config)
    assert (after.id == before.id, after.listing == before.listing) == (True, False)
    (tmp_path / "b.txt").rename(tmp_path / "b.md")
    assert describe(scan(config), config).id != before.id


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("missing", "does not exist"),
        ("*.nothing", "does not exist"),
        ("empty", "no file in"),
        ("picture.png", r"matches none of corpus\.include .* add --corpus\.include '\*\.png'"),
        ("pipe.txt", "neither a file nor a folder"),
        ("dangling.txt", "does not exist"),
        ("self.txt", "does not exist"),
    ],
)
def test_a_path_that_gives_no_text_is_refused(tmp_path: Path, entry: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path, "picture.png", b"")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "dangling.txt").symlink_to("nowhere.txt")
    (tmp_path / "self.txt").symlink_to("self.txt")
    with pytest.raises(CorpusError, match=message):
        scan(CorpusConfig(paths=[str(tmp_path / entry)]))


def test_no_path_is_refused() -> None:
    with pytest.raises(CorpusError, match=r"corpus\.paths is empty"):
        scan(CorpusConfig())


def test_a_file_name_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/\x93\xfa.txt"
    with open(path, "wb") as file:
        file.write(b"text")
    config = CorpusConfig(paths=[str(tmp_path)])
    with pytest.raises(CorpusError, match=r"is no UTF-8"):
        describe(scan(config), config)


def test_a_glob_and_a_name_that_looks_like_one(tmp_path: Path) -> None:
    for name in ("a1.txt", "a2.txt", "b.txt", "[x].txt"):
        write(tmp_path, name, b"text")
    assert len(scan(CorpusConfig(paths=[str(tmp_path / "a*.txt")])).files) == 2
    assert len(scan(CorpusConfig(paths=[str(tmp_path / "[x].txt")])).files) == 1


def test_stdlib_is_the_folder_of_the_running_python() -> None:
    files = scan(CorpusConfig(paths=["stdlib:"], include=["this.py"])).files
    assert [file.path for file in files] == [os.path.join(sysconfig.get_path("stdlib"), "this.py")]


def test_a_validation_file_is_not_trained_on(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        write(tmp_path, name, name.encode())
    found = scan(CorpusConfig(paths=[str(tmp_path)], validation_paths=[str(tmp_path / "b.txt")]))
    assert [Path(file.path).name for file in found.files] == ["a.txt"]
    assert [Path(file.path).name for file in found.validation_files] == ["b.txt"]


# --- files that change ---


def changes() -> Iterator[tuple[str, bytes]]:
    yield "appended", b"first\nmore\n"
    yield "same size", b"f1rst\n"
    yield "emptied", b""


@pytest.mark.parametrize(("how", "content"), changes())
def test_a_file_that_changes_between_scan_and_read_is_refused(tmp_path: Path, how: str, content: bytes) -> None:
    path = write(tmp_path, "a.txt", b"first\n")
    config = CorpusConfig(paths=[str(path)])
    found = scan(config)
    expected = describe(found, config)
    path.write_bytes(content)
    with pytest.raises(CorpusError, match="changed while it was read"):
        list(read_documents(found.files[0], config, Ledger()))
    with pytest.raises(CorpusError, match="the corpus changed"):
        scan_again(config, expected)


def test_a_file_that_goes_between_scan_and_read_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.txt", b"first\n")
    config = CorpusConfig(paths=[str(path)])
    found = scan(config)
    path.unlink()
    with pytest.raises(CorpusError, match=r"a\.txt cannot be read"):
        list(read_documents(found.files[0], config, Ledger()))
