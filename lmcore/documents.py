"""Spans to documents, with a ledger of every byte.

Text that cannot be used (invalid UTF-8, broken JSON, a document that is too long ...) costs only itself and gets a
row in the ledger: bytes of a span = bytes in documents + separators + skipped, checked for every span.
"""

import importlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from lmcore.config import CorpusConfig
from lmcore.corpus import SourceFile
from lmcore.errors import ConfigError, CorpusError
from lmcore.ledger import Ledger, Skip
from lmcore.spans import Span, read_spans, unit_of
from lmcore.store import hash_text

_BOM = b"\xef\xbb\xbf"
_NOTHING = object()
_BLANK_LINES = re.compile(rb"\s*\n")


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its place in the file: bytes of the decompressed file, or the row of a table."""

    text: str
    """As corpus.normalize leaves it."""
    utf8: bytes
    """The same text in UTF-8."""
    text_bytes: int
    """UTF-8 bytes of the text as it stands in the file."""
    offset: int
    length: int
    hash: int
    """64 bits that name the text as corpus.normalize leaves it: the beginning of its BLAKE3 digest."""

    def is_validation(self, fraction: float) -> bool:
        """True for the same texts in every corpus: those whose hash is in the lowest ``fraction``."""
        return self.hash < fraction * 2**64


def read_documents(file: SourceFile, config: CorpusConfig, ledger: Ledger) -> Iterator[Document]:
    """Stream the documents of one file and account for every byte of it in ``ledger``.

    Raises FileChangedError when the file cannot be read or is not the one that was scanned.
    """
    for span in read_spans(file, config, ledger):
        account = Ledger()
        yield from parse(span, config, account)
        account.source_bytes = 0  # counted by the reader
        ledger.add(account)


def parse(span: Span, config: CorpusConfig, ledger: Ledger) -> Iterator[Document]:
    """The documents of a span; ``ledger`` says where all of its bytes went.

    Raises CorpusError if that does not add up, which would be a bug of this program.
    """
    keep = _predicate(config.filter)
    content, offset = span.content, span.start
    ledger.source_bytes += len(content)
    if span.ends is None and span.start == 0 and content.startswith(_BOM):
        content, offset = content[len(_BOM) :], len(_BOM)
        ledger.separator_bytes += offset
    for piece in _pieces(span, content, config):
        text = None
        if not piece.content and span.ends is None:
            ledger.separator_bytes += piece.length
        elif piece.reaches_end and span.is_cut_off:
            _skip(ledger, span, offset, piece, "cut_off")
        elif piece.is_too_long:
            _skip(ledger, span, offset, piece, "too_long")
        else:
            text, utf8, reason = _text(piece.content, span.kind, config)
            if text is None:
                _skip(ledger, span, offset, piece, reason)
            elif keep is not None and not _keeps(keep, text, f"the document at {offset} of {span.path}"):
                text = None
                ledger.filtered_documents += 1
                ledger.filtered_bytes += len(piece.content)
                ledger.separator_bytes += piece.length - len(piece.content)
        if text is not None:
            ledger.documents += 1
            ledger.document_bytes += len(piece.content)
            ledger.separator_bytes += piece.length - len(piece.content)
            yield _document(text, utf8, piece, offset, config, ledger)
        offset += piece.length if span.ends is None else 1
    if ledger.unaccounted_bytes:
        raise CorpusError(
            f"the ledger of {span.path} from {span.start} to {span.stop} does not add up: "
            f"{ledger.unaccounted_bytes} bytes unaccounted. This is a bug: please report the file"
        )


def _document(text: str, utf8: bytes, piece: "_Piece", offset: int, config: CorpusConfig, ledger: Ledger) -> Document:
    text_bytes = len(utf8)
    if config.normalize:
        normalized = unicodedata.normalize(config.normalize, text)
        ledger.normalized_documents += normalized != text
        text, utf8 = normalized, normalized.encode()
    return Document(text, utf8, text_bytes, offset, len(piece.content), hash_text(utf8))


def _keeps(keep: Callable[[str], bool], text: str, where: str) -> bool:
    try:
        return keep(text)
    except Exception as error:
        raise ConfigError(f"corpus.filter: {type(error).__name__} at {where}: {error}") from error


def _predicate(name: str) -> Callable[[str], bool] | None:
    """The function of a dotted name. Raises ConfigError when there is none."""
    if not name:
        return None
    module, _, function = name.rpartition(".")
    try:
        found: Callable[[str], bool] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"corpus.filter: there is no {name} ({error}); give package.module.function") from error
    return found


@dataclass(slots=True)
class _Piece:
    """``length`` bytes of a file: ``content``, then separator bytes. Of a piece that is too long,
    content is only the beginning."""

    content: bytes
    length: int
    reaches_end: bool = False
    is_too_long: bool = False


def _skip(ledger: Ledger, span: Span, offset: int, piece: _Piece, reason: str) -> None:
    length = piece.length if piece.is_too_long else len(piece.content)
    ledger.skipped.append(Skip(span.path, offset, length, reason, content=piece.content))
    ledger.separator_bytes += piece.length - length


def _pieces(span: Span, content: bytes, config: CorpusConfig) -> Iterator[_Piece]:
    limit = config.max_document_bytes
    if span.ends is not None:
        return _rows(content, span.ends.tolist(), limit)
    unit = unit_of(span.kind, config)
    if unit == "file":
        return _whole(content, limit)
    lines = _lines(content, limit)
    return lines if unit == "line" else _paragraphs(lines, limit)


def _rows(content: bytes, ends: list[int], limit: int) -> Iterator[_Piece]:
    for start, end in zip([0, *ends], ends, strict=False):
        yield _Piece(content[start:end], end - start, is_too_long=end - start > limit)


def _whole(content: bytes, limit: int) -> Iterator[_Piece]:
    if content:
        yield _Piece(content[: limit + 1], len(content), reaches_end=True, is_too_long=len(content) > limit)


def _lines(content: bytes, limit: int) -> Iterator[_Piece]:
    """Lines; those of several blank ones are one piece without content, and a line end is LF or CR LF."""
    start = 0
    while start < len(content):
        # Bounded, so that no blank line of more than ``limit`` bytes is among them.
        if content[start] <= 32 and (blank := _BLANK_LINES.match(content, start, start + limit)):
            yield _Piece(b"", blank.end() - start)
            start = blank.end()
            continue
        end = content.find(b"\n", start)
        stop = end + 1 if end >= 0 else len(content)
        if end < 0:
            end = stop
        elif content.endswith(b"\r", start, end):
            end -= 1
        line = content[start : min(end, start + limit + 1)]
        if line.isspace() and len(line) <= limit:
            line = b""
        yield _Piece(line, stop - start, bool(line) and end == stop, is_too_long=len(line) > limit)
        start = stop


def _paragraphs(lines: Iterator[_Piece], limit: int) -> Iterator[_Piece]:
    """Runs of lines without a blank one between them, joined by LF as they stood (CR LF by CR LF)."""
    parts: list[bytes] = []
    size = length = 0
    for line in lines:
        if line.content:
            size += len(line.content)
            if line.is_too_long or size > limit:
                size, parts = limit + 1, [b""]
            else:
                ending = line.length - len(line.content)
                parts += [line.content, b"\r\n"[2 - ending :]]
                size += ending
            length += line.length
        else:
            if length:
                yield _joined(parts, length, False)
            parts, size, length = [], 0, 0
            yield line
    if length:
        yield _joined(parts, length, True)


def _joined(parts: list[bytes], length: int, reaches_end: bool) -> _Piece:
    """The paragraph of ``parts`` without its last line end; no parts stand for one that is too long."""
    content = b"".join(parts[:-1])
    return _Piece(content or b"too long", length, reaches_end, is_too_long=not content)


def _text(content: bytes, kind: str, config: CorpusConfig) -> tuple[str | None, bytes, str]:
    """The text of a piece and its UTF-8 bytes, or None and the reason why there is none."""
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


def _field(row: Any, name: str) -> Any:
    """What is at a dotted name, the whole name first; _NOTHING when there is nothing."""
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
        return json.loads(line.decode())  # which takes what people write (NaN), or says what is wrong
