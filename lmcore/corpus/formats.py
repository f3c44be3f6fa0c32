"""The formats of files: how each is recognized and read, and how formats that are not read can be converted.

The suffix gives the kind (``_KINDS``). The first bytes overrule it: a zip or a table named .txt is not text, and a file
named .json is read only if it holds JSON lines. To add a format, add its suffix here and its reader in readers.py.
"""

import math
import re
import shlex
from dataclasses import dataclass
from itertools import chain, islice
from typing import IO, Any

import orjson

from lmcore.corpus.compression import Unpacked, compression_of
from lmcore.corpus.encodings import encoding_problem
from lmcore.corpus.text_units import detect_text_kind

RULES_VERSION = 2
"""Version of the rules here, in encodings.py and in text_units.py. Formats found by other versions are not reused."""
HEAD_BYTES = 2**16

_KINDS = {
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "jsonlines": "jsonl",
    "json": "jsonl",
    "parquet": "parquet",
    "arrow": "arrow",
    "feather": "arrow",
    "txt": "txt",
}
PLAIN_TEXT = {"txt": "lines", "paragraphs": "paragraphs", "text": "whole files"}
"""What a document of each kind of plain text is if corpus.document is auto."""

_STORED_BLOCKS = 64
"""Stored blocks that are unpacked at most to read a head."""
_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
_MAGIC = (
    (_POINTERS[0], "git_lfs_pointer"),
    (_POINTERS[1], "git_annex_pointer"),
    (b"PK\x03\x04", "zip"),
    (b"%PDF-", "pdf"),
    (b"WARC/", "warc"),
    (b"{\\rtf", "rtf"),
    (b"\x1f\x8b", "gzip"),
    (b"BZh9", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1", "parquet"),
    (b"ARROW1\0", "arrow"),
    (b"SQLite format 3\0", "sqlite"),
    (b"\x89PNG", "picture"),
    (b"\xff\xd8\xff", "picture"),
    (b"GIF8", "picture"),
    (b"\xd0\xcf\x11\xe0", "office"),
)
_IN_ZIP = ((b"word/", "docx"), (b"xl/", "office"), (b"ppt/", "office"), (b"epub+zip", "epub"), (b"opendocument", "odt"))
_TABLES = {"csv": "csv", "tsv": "tsv"}
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype html|html)\b", re.IGNORECASE)

_JSON_LINES = "one JSON object a line is needed"
_ADVICE = {
    "git_lfs_pointer": "a pointer of git-lfs, not the file itself: run `git lfs pull` in its folder",
    "git_annex_pointer": "a pointer of git-annex, not the file itself: run `git annex get` in its folder",
    "zip": "a zip archive: unpack it with `unzip {path}`",
    "tar": "a tar archive: unpack it with `tar xf {path}`",
    "docx": "a Word document: convert it with `pandoc -t plain --wrap=none {path} -o {stem}.txt`",
    "odt": "an OpenDocument text: convert it with `pandoc -t plain --wrap=none {path} -o {stem}.txt`",
    "epub": "an e-book: convert it with `pandoc -t plain --wrap=none {path} -o {stem}.txt`",
    "rtf": "a rich text document: convert it with `pandoc -t plain --wrap=none {path} -o {stem}.txt`",
    "office": "an office document: save it as plain text in UTF-8, or as CSV and convert that to JSON lines",
    "pdf": "a PDF: convert it with `pdftotext {path} {stem}.txt`",
    "html": "a web page: convert it with `pandoc -f html -t plain --wrap=none {path} -o {stem}.txt`",
    "warc": "a WARC archive of web pages: extract their text first, for example with trafilatura",
    "csv": "a table in CSV: convert it to JSON lines with `{csv}`",
    "tsv": "a table in TSV: convert it to JSON lines with `{csv}`",
    "gzip": "compressed with gzip: rename it to {path}.gz",
    "bzip2": "compressed with bzip2: rename it to {path}.bz2",
    "xz": "compressed with xz: rename it to {path}.xz",
    "zstd": "compressed with zstd: rename it to {path}.zst",
    "parquet": "a Parquet table: rename it to {stem}.parquet",
    "arrow": "an Arrow table: rename it to {stem}.arrow",
    "sqlite": "an SQLite database: export its text as JSON lines",
    "picture": "a picture: leave it out with corpus.exclude",
    "json_array": f"one JSON array, and {_JSON_LINES}: convert it with `jq -c '.[]' {{path}} > {{stem}}.jsonl`",
    "pretty_json": f"JSON over several lines, and {_JSON_LINES}: convert it with `jq -c . {{path}} > {{stem}}.jsonl`",
    "no_json_lines": f"JSON, and {_JSON_LINES}",
    "other_encoding": "{detail} text, not UTF-8: convert it with "
    "`{unpack}iconv -f {detail} -t UTF-8 {input}> {stem}.utf8.txt`",
    "nul_bytes": "text that contains NUL bytes: remove them with `{unpack}tr -d '\\000' {stdin}> {stem}.clean.txt`",
    "escape_sequences": "full of a terminal's escape sequences: remove them with "
    "`{unpack}sed 's/\\x1b\\[[0-9;?]*[A-Za-z]//g' {input}> {stem}.clean.txt`",
    "no_text": "neither UTF-8 text nor text in another encoding that is known here: leave it out with corpus.exclude",
    "empty_file": "empty: copy it again, or leave it out with corpus.exclude",
    "empty_table": "a table without rows",
    "damaged_table": "a damaged table: copy it again, or leave it out with corpus.exclude",
    "damaged_archive": "damaged, or not compressed as its name says: copy it again",
    "truncated_archive": "cut short: copy it again",
    "name_is_no_utf8": "a name in another encoding than UTF-8: rename it (convmv -f cp932 -t utf-8 does so)",
    "path_too_long": "too long a path: move it up",
}
_UNPACKERS = {"gz": "gzip -dc", "bz2": "bzip2 -dc", "xz": "xz -dc", "zst": "zstd -dc --long=31"}


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How a file is read, or the reason (with a detail) why it is not."""

    kind: str
    problem: str = ""
    detail: str = ""


def suffix_of(name: str) -> str:
    """The last suffix in lower case, without that of a compression: json for ROWS.JSON.GZ."""
    name = name.lower()
    return name.removesuffix(f".{compression_of(name)}").rpartition(".")[2] if "." in name else ""


def kind_of_name(name: str) -> str:
    """How a file of this name is read once it is unpacked: jsonl, parquet, arrow, txt or text."""
    return _KINDS.get(suffix_of(name), "text")


def read_head(stream: IO[bytes], compression: str) -> tuple[bytes, bool]:
    """The first unpacked bytes of a file, and whether they are all of it. A git pointer is not unpacked."""
    stored = stream.read(HEAD_BYTES)
    if not compression or stored.startswith(_POINTERS):
        return stored, len(stored) < HEAD_BYTES
    blocks = chain([stored], islice(iter(lambda: stream.read(HEAD_BYTES), b""), _STORED_BLOCKS))
    unpacked, head = Unpacked(blocks, compression, math.inf), b""
    for block in unpacked:
        head += block
        if len(head) >= HEAD_BYTES:
            return head[:HEAD_BYTES], False
    return head, not unpacked.problem


def detect_format(head: bytes, is_whole: bool, name: str) -> FileFormat:
    """The format of a file by its name and its first unpacked bytes (HEAD_BYTES of them unless ``is_whole``)."""
    kind, suffix = kind_of_name(name), suffix_of(name)
    problem = foreign_format(head, suffix)
    if kind in ("parquet", "arrow"):
        is_table = problem == kind or not problem
        return FileFormat(kind, "" if head and is_table else problem or "empty_file")
    if problem:
        return FileFormat(kind, problem)
    reason, encoding = encoding_problem(head, is_whole)
    if reason:
        return FileFormat(kind, reason, encoding)
    if kind == "jsonl":
        return FileFormat(kind, _json_problem(head, is_whole, suffix))
    return FileFormat(detect_text_kind(head, is_whole) if kind == "txt" else kind)


def foreign_format(head: bytes, suffix: str) -> str:
    """The format of a file that is not read as text, by magic numbers, and by suffix for CSV and TSV; else empty."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return next((kind for mark, kind in _IN_ZIP if mark in head), name) if name == "zip" else name
    if head[257:262] == b"ustar":
        return "tar"
    if suffix in ("txt", "md", "html", "htm", "xhtml") and _HTML.match(head):
        return "html"
    return _TABLES.get(suffix, "")


def _json_problem(head: bytes, is_whole: bool, suffix: str) -> str:
    """Why a file is not JSON lines. One good line in the head is enough for .jsonl: bad lines are skipped."""
    lines = [line for line in head.removeprefix(b"\xef\xbb\xbf").splitlines() if line.strip()]
    complete = lines if is_whole else lines[:-1]
    if not lines or not complete:
        return ""
    first = lines[0].strip()
    if first.startswith(b"["):
        return "json_array"
    found = [_is_object(line) for line in complete[:20]]
    if suffix == "json":
        return "" if all(found[:2]) else "pretty_json" if first.startswith(b"{") else "no_json_lines"
    if not any(found) and first.startswith(b"{") and not lines[-1].lstrip().startswith(b"{"):
        return "pretty_json" if len(lines) > 1 else ""
    return ""


def _is_object(line: bytes) -> bool:
    try:
        found: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict)


def advice(reason: str, path: str, detail: str = "") -> str:
    """What a file is that is skipped for this reason, and what to do; empty for reasons that need no advice."""
    compression = compression_of(path.lower())
    stem = path.removesuffix(f".{compression}") if compression else path
    stem = stem.rpartition(".")[0] or stem if "." in stem.rpartition("/")[2] else stem
    quoted = shlex.quote(path)
    reader = "csv.DictReader(open(sys.argv[1], newline='')" + (", delimiter='\\t')" if reason == "tsv" else ")")
    program = f"import csv, json, sys; [print(json.dumps(row)) for row in {reader}]"
    return _ADVICE.get(reason, "").format(
        path=quoted,
        stem=shlex.quote(stem),
        detail=detail,
        unpack=f"{_UNPACKERS[compression]} {quoted} | " if compression else "",
        input="" if compression else f"{quoted} ",
        stdin="" if compression else f"< {quoted} ",
        csv=f"python3 -c {shlex.quote(program)} {quoted} > {shlex.quote(stem)}.jsonl",
    )
