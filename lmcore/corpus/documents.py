"""Parse text ranges into documents, with a ledger of every byte.

Text that cannot be used (invalid UTF-8, broken JSON, a document that is too long) costs only itself and gets a row in
the ledger. For each range the ledger is checked: its bytes = bytes in documents + separators + skipped.
"""

import json
import re
import unicodedata
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from lmcore.corpus.detection import encoding_problem
from lmcore.corpus.ledger import Ledger, Skip, name_list
from lmcore.corpus.text_range import TextRange, unit_of
from lmcore.errors import CorpusError
from lmcore.settings.config import CorpusConfig
from lmcore.store.files import hash_text

_NOTHING = object()
_BLANK_LINES = re.compile(rb"\s*[\r\n]")
_LINE_END = re.compile(rb"\n|\r(?:\r?\n)?")


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its place in the file. Offset and length are unpacked bytes; of a table, row and bytes."""

    text: str
    """The text, normalized by corpus.normalize."""
    utf8: bytes
    """The same text in UTF-8."""
    text_bytes: int
    """UTF-8 bytes of the text before normalization."""
    offset: int
    length: int
    hash: int
    """The first 64 bits of the BLAKE3 digest of ``utf8``."""


def parse(text_range: TextRange, config: CorpusConfig, ledger: Ledger) -> Iterator[Document]:
    """The documents of a text range. ``ledger`` gets each of its bytes.

    Raises CorpusError if the ledger does not add up, which is a bug of this program.
    """
    content, path, unit = text_range.content, text_range.path, unit_of(text_range.kind, config)
    details: dict[str, str] = {}
    start = len(BOM_UTF8) if text_range.start == 0 and unit != "row" and content.startswith(BOM_UTF8) else 0
    ledger.source_bytes += len(content)
    ledger.separator_bytes += start
    for row, end in enumerate(text_range.ends.tolist()):
        piece = content[start:end]
        skipped, found = _text_place(piece, unit)
        offset = text_range.start + (row if unit == "row" else start + skipped)
        length = len(found)
        ledger.separator_bytes += len(piece) - length
        start = end
        if not found and unit != "row":
            continue
        text, utf8, reason = None, b"", ""
        if text_range.is_cut_off and end == len(content) and _is_open(piece[skipped + length :], unit):
            reason = "cut_off"
        elif length > config.max_document_bytes:
            reason, found = "too_long", found[: config.max_document_bytes + 1]
        else:
            text, utf8, reason = _text(found, text_range.kind, config)
        if text is None:
            detail = _new_detail(reason, found, details)
            ledger.skipped.append(Skip(path, offset, length, reason, detail=detail, content=found))
        else:
            ledger.documents += 1
            ledger.document_bytes += length
            yield _document(text, utf8, length, offset, config, ledger)
    if ledger.unaccounted_bytes:
        raise CorpusError(
            f"the ledger of {path} from {text_range.start} to {text_range.stop} does not add up: "
            f"{ledger.unaccounted_bytes} bytes unaccounted. This is a bug: please report the file"
        )


def _text_place(piece: bytes, unit: str) -> tuple[int, bytes]:
    """The bytes of blank lines that a piece begins with, and the text behind them without its last line end.

    A line ends in LF, CR LF, CR, or CR CR LF (in text that was converted twice). U+2028 ends no line.
    """
    if unit in ("row", "file"):
        return 0, piece
    blank = _BLANK_LINES.match(piece) if piece[:1] <= b" " else None
    start = blank.end() if blank else 0
    if unit == "line":
        text = piece[start:].rstrip(b"\r\n")
    else:
        end = _LINE_END.search(piece, max(start, len(piece.rstrip())))
        text = piece[start : end.start() if end else None]
    return (start, b"") if text.isspace() else (start, text)


def _is_open(separators: bytes, unit: str) -> bool:
    """True if the text may continue behind these separators: no line end, or no blank line."""
    return not (separators if unit == "line" else _LINE_END.sub(b"", separators, count=1))


def _document(text: str, utf8: bytes, length: int, offset: int, config: CorpusConfig, ledger: Ledger) -> Document:
    text_bytes = len(utf8)
    if config.normalize:
        normalized = unicodedata.normalize(config.normalize, text)
        ledger.normalized_documents += normalized != text
        text, utf8 = normalized, normalized.encode()
    return Document(text, utf8, text_bytes, offset, length, hash_text(utf8))


def _text(content: bytes, kind: str, config: CorpusConfig) -> tuple[str | None, bytes, str]:
    """The text of a piece and its UTF-8 bytes, or None and the reason why it has no text."""
    try:
        if kind == "jsonl":
            row = _json(content)
            if not isinstance(row, dict):
                return None, b"", "not_an_object"
            text = _field(row, config.text_field)
            if text is _NOTHING:
                return None, b"", "no_text_field"
            if not isinstance(text, str):
                return None, b"", "text_is_no_string"
            content = text.encode()
        else:
            text = content.decode()
    except UnicodeDecodeError:
        return None, b"", "invalid_utf8"
    except UnicodeEncodeError:
        return None, b"", "lone_surrogate"
    except (ValueError, RecursionError):
        return None, b"", "invalid_json"
    return (text, content, "") if text.strip() else (None, b"", "empty_text")


def _new_detail(reason: str, content: bytes, details: dict[str, str]) -> str:
    """What a piece holds instead of text, if it differs from the last detail for the reason.

    The encoding is detected only for the first piece that is not UTF-8, because detection is slow.
    """
    if reason == "no_text_field":
        detail = name_list(sorted(_json(content)))
    elif reason == "invalid_utf8" and reason not in details:
        detail = encoding_problem(content, True)[1]
    else:
        return ""
    is_new = details.get(reason) != detail
    details[reason] = detail
    return detail if is_new else ""


def _field(row: Any, name: str) -> Any:
    """The value at a dotted name, _NOTHING if there is none. A key that equals the whole name comes first."""
    if not isinstance(row, dict):
        return _NOTHING
    if name in row:
        return row[name]
    head, dot, rest = name.partition(".")
    return _field(row.get(head), rest) if dot else _NOTHING


def _json(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        return json.loads(line.decode())  # accepts NaN, or raises an error that names the problem
