"""What the first unpacked bytes of a file show: another format, another encoding, or what a document in it is.

Magic numbers overrule a suffix: a zip or a table named .txt is not text, and a file named .json is read only if it
holds JSON lines. ISO-2022-JP and UTF-7 are valid UTF-8 byte for byte, and so are NULs and escape sequences of a
terminal: they must not be trained on. A few bad lines are skipped one by one and do not exclude the file.

The documents of a .txt are its lines if each stands alone: sentences, records, logs. They are its paragraphs if blank
lines separate groups of lines, and most groups have several lines or one of them is wrapped; or if all lines are
wrapped. In wrapped text sentences end in mid-line and continue on the next line. Only complete lines of the first 16 kB
count, so a growing file is always cut in the same way.
"""

import codecs
import re
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import orjson

RULES_VERSION = 3
"""Version of the rules here. Formats found by other versions are not reused."""
HEAD_BYTES = 2**16

GIT_POINTERS = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")
_MAGIC = (
    (GIT_POINTERS[0], "git_lfs_pointer"),
    (GIT_POINTERS[1], "git_annex_pointer"),
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
_HTML = re.compile(rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?<(!doctype html|html)\b", re.IGNORECASE)

_LEAST_BYTES = 20
"""Fewer bytes do not distinguish encodings."""
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KANA = re.compile("[\u3041-\u30fe]")
_UTF16_NULS = 0.04
"""Text with this share of NULs is UTF-16. ASCII has one half; Japanese has NULs in spaces, digits and line ends."""
_AS_UTF8 = {"", "UTF-8", "UTF-8-SIG", "ASCII"}
"""Encodings that are detected for text with NULs or bad lines and need no conversion."""
_ESCAPED_LINES = _BAD_LINES = 0.2
"""Shares of lines from which the whole file is not UTF-8 text."""
_CONTROLS = bytes([*range(9), *range(14, 32)])
_CONTROL_BYTES = 0.05
"""Bytes in no known encoding with this share of control characters are binary."""

_UNIT_BYTES = 2**14
_LEAST_GROUPS = 3
_LINES_IN_A_GROUP = 1.5
_LEAST_WRAPPED_LINES = 5
_LONGEST_WRAPPED_LINE = 200
"""Characters. Text is not wrapped at more."""
_FULL = 0.7
"""A line is full if it has this share of the width of the widest line."""
_SENTENCE_END = re.compile(r"""[。．！？.!?…]["'」』）)”’]*$""")
_SENTENCE_WITHIN = re.compile(r"""[。！？][」』）]*[^\s」』）。！？]|[.!?]["')”’]* +["'(“‘]?[A-Z]""")
_CONTINUED = re.compile(r"[a-z\u3041-\u30fe\u4e00-\u9fff]")


@dataclass(frozen=True, slots=True)
class FileFormat:
    """How a file is read, or the reason (with a detail) why it is not."""

    kind: str
    problem: str = ""
    detail: str = ""


def detect_format(head: bytes, is_whole: bool, kind: str, suffix: str) -> FileFormat:
    """The format of a file by its first unpacked bytes (HEAD_BYTES of them unless ``is_whole``) and its name."""
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
    return FileFormat(text_kind(head, is_whole) if kind == "txt" else kind)


def foreign_format(head: bytes, suffix: str) -> str:
    """The format of a file that is not read as text, by magic numbers, and by suffix for CSV and TSV; else empty."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return next((kind for mark, kind in _IN_ZIP if mark in head), name) if name == "zip" else name
    if head[257:262] == b"ustar":
        return "tar"
    if suffix in ("txt", "md", "html", "htm", "xhtml") and _HTML.match(head):
        return "html"
    return suffix if suffix in ("csv", "tsv") else ""


def _json_problem(head: bytes, is_whole: bool, suffix: str) -> str:
    """Why a file is not JSON lines. One good line in the head is enough for .jsonl: bad lines are skipped."""
    lines = [line for line in head.removeprefix(codecs.BOM_UTF8).splitlines() if line.strip()]
    complete = lines if is_whole else lines[:-1]
    if not complete:
        return ""
    first = lines[0].strip()
    if first.startswith(b"["):
        return "json_array"
    found = [_is_object(line) for line in complete[:20]]
    if suffix == "json":
        return "" if all(found[:2]) else "pretty_json" if first.startswith(b"{") else "no_json_lines"
    is_one_object = first.startswith(b"{") and len(lines) > 1 and not lines[-1].lstrip().startswith(b"{")
    return "pretty_json" if is_one_object and not any(found) else ""


def _is_object(line: bytes) -> bool:
    try:
        found: Any = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return isinstance(found, dict)


# --- encodings ---


def encoding_problem(head: bytes, is_whole: bool) -> tuple[str, str]:
    """(reason, iconv's name of the encoding) for a head that is not UTF-8 text; two empty strings for text.

    ``is_whole``: the head is the whole file. Otherwise its last character may be incomplete.
    """
    is_wide = head.startswith(_MARKS) or head.count(0) > _UTF16_NULS * len(head)
    if len(head) < _LEAST_BYTES and not head.startswith(_MARKS):
        return "", ""
    is_utf8 = _decodes(head, "utf-8", is_whole)
    if not is_wide and is_utf8:
        return _disguised(head)
    if not is_wide and _has_mostly_good_lines(head):
        return "", ""
    name = _japanese(head) or _detected(head)
    if name.upper() in _AS_UTF8:
        if is_wide and is_utf8 and _has_few_controls(head.replace(b"\0", b"")):
            return "nul_bytes", ""
        name = ""
    if name:
        return "other_encoding", name
    return ("", "") if _has_few_controls(head) else ("no_text", "")


def _has_few_controls(head: bytes) -> bool:
    return len(head.translate(None, _CONTROLS)) > (1 - _CONTROL_BYTES) * len(head)


def _disguised(head: bytes) -> tuple[str, str]:
    """The problem of text that is valid UTF-8 and nevertheless something else."""
    if b"\x1b" not in head:
        return ("other_encoding", "UTF-7") if _is_utf7(head) else ("", "")
    if re.search(rb"\x1b\$[@AB(]|\x1b\([IJ]", head) and head.isascii():
        return "other_encoding", "ISO-2022-JP" if _decodes(head, "iso2022_jp") else "ISO-2022-JP-3"
    lines = [line for line in head.split(b"\n") if line.strip()]
    is_escaped = sum(b"\x1b" in line for line in lines) > _ESCAPED_LINES * len(lines)
    return ("escape_sequences" if is_escaped else ""), ""


def _is_utf7(head: bytes) -> bool:
    """True if many characters decode to kana in UTF-7. "c++-" and base64 do not."""
    if not (head.isascii() and re.search(rb"\+[A-Za-z0-9/+]{3,}-?", head)):
        return False
    text = head.decode("utf-7", "replace")
    return len(_KANA.findall(text)) > len(text) / 20


def _has_mostly_good_lines(head: bytes) -> bool:
    lines = [line for line in head.split(b"\n") if line.strip()]
    bad = sum(not _decodes(line, "utf-8", True) for line in lines)
    return bad < _BAD_LINES * len(lines) or 2 * bad < sum(not line.isascii() for line in lines)


def _japanese(head: bytes) -> str:
    """The Japanese encoding of the text, or nothing. Windows writes CP932; iconv's SHIFT_JIS lacks ① and ㈱."""
    for codec, name in (("cp932", "CP932"), ("euc_jp", "EUC-JP")):
        text = head.decode(codec, "replace")
        if len(_KANA.findall(text)) > len(text) / 10 and text.count("\ufffd") <= len(text) / 20:
            return name if name == "CP932" or _decodes(head, codec) else "EUC-JP-MS"
    return ""


def _detected(head: bytes) -> str:
    import chardet  # the import takes 0.1 s, and most corpora are UTF-8

    name = chardet.detect(head)["encoding"] or ""
    return re.sub(r"-(?=[LB]E$)", "", name.upper()) if name.lower().startswith("utf") else name


def _decodes(head: bytes, codec: str, is_whole: bool = False) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(head, is_whole)
    except UnicodeDecodeError:
        return False
    return True


# --- lines or paragraphs ---


def text_kind(head: bytes, is_whole: bool) -> str:
    """txt (lines are documents) or paragraphs; the same for every file that begins with these bytes."""
    is_whole = is_whole and len(head) <= _UNIT_BYTES
    text = head[:_UNIT_BYTES].decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split(r"\n|\r(?:\r?\n)?", text)
    lines = [line.rstrip() for line in (lines if is_whole else lines[:-1])]
    groups = [list(group) for is_filled, group in groupby(lines, bool) if is_filled]
    filled = [line for line in lines if line]
    is_grouped = len(filled) >= _LINES_IN_A_GROUP * len(groups) or _holds_a_wrapped_paragraph(groups)
    is_cut_by_blank_lines = len(groups) >= _LEAST_GROUPS and is_grouped
    return "paragraphs" if is_cut_by_blank_lines or _are_wrapped(filled) else "txt"


def _holds_a_wrapped_paragraph(groups: list[list[str]]) -> bool:
    """Whether a sentence continues in the next line of a group. One is enough: paragraphs may have one line."""
    several = [group for group in groups if len(group) > 1]
    widest = max((len(line) for group in several for line in group), default=0)
    return widest <= _LONGEST_WRAPPED_LINE and any(
        len(line) >= _FULL * widest and not _SENTENCE_END.search(line) and not following[0].isspace()
        for group in several
        for line, following in pairwise(group)
    )


def _are_wrapped(lines: list[str]) -> bool:
    """Whether text flows over the ends of most lines and these are about equally long."""
    widest = max(map(len, lines), default=0)
    if len(lines) < _LEAST_WRAPPED_LINES or widest > _LONGEST_WRAPPED_LINE:
        return False
    full, ended, within, continued = (
        sum(map(bool, found)) / len(lines)
        for found in (
            (len(line) >= _FULL * widest for line in lines),
            map(_SENTENCE_END.search, lines),
            map(_SENTENCE_WITHIN.search, lines),
            map(_CONTINUED.match, lines),
        )
    )
    return full >= 0.6 and ended <= 0.5 and within >= 0.2 and continued >= 0.3
