"""Parse text ranges into documents, with a ledger of every byte.

Text that cannot be used (invalid UTF-8, broken JSON, a document that is too long) costs only itself and gets a row in
the ledger. For each range the ledger is checked: its bytes = bytes in documents + separators + skipped.
"""

import importlib
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from lmcore.corpus.encodings import encoding_problem
from lmcore.corpus.ledger import Ledger, Skip, name_list
from lmcore.corpus.readers import read_ranges
from lmcore.corpus.scan import SourceFile
from lmcore.corpus.text_range import TextRange, has_lone_cr, unit_of
from lmcore.errors import ConfigError, CorpusError
from lmcore.settings.config import CorpusConfig
from lmcore.store.files import hash_text

_BOM = b"\xef\xbb\xbf"
_NOTHING = object()
_BLANK_LINES = re.compile(rb"\s*\n")
_BLANK_CR_LINES = re.compile(rb"\s*(?:\n|\r(?!\n))")
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

    def is_validation(self, fraction: float) -> bool:
        """True if the hash is in the lowest ``fraction``; the same for a text in every corpus."""
        return is_validation(self.hash, fraction)


def is_validation(document_hash: int, fraction: float) -> bool:
    """The rule of ``Document.is_validation``, for a hash alone."""
    return document_hash < fraction * 2**64


def read_documents(file: SourceFile, config: CorpusConfig, ledger: Ledger) -> Iterator[Document]:
    """Stream the documents of one file and count each of its bytes in ``ledger``.

    Raises FileChangedError if the file cannot be read or is not the one that was scanned.
    """
    for text_range in read_ranges(file, config, ledger):
        counts = Ledger()
        yield from parse(text_range, config, counts)
        counts.source_bytes = 0  # the reader counted them
        ledger.add(counts)


def parse(text_range: TextRange, config: CorpusConfig, ledger: Ledger) -> Iterator[Document]:
    """The documents of a text range. ``ledger`` gets each of its bytes.

    Raises CorpusError if the ledger does not add up, which is a bug of this program.
    """
    keep = _predicate(config.filter)
    details: dict[str, str] = {}
    content, offset, is_text = text_range.content, text_range.start, text_range.ends is None
    ledger.source_bytes += len(content)
    if is_text and text_range.start == 0 and content.startswith(_BOM):
        content, offset = content[len(_BOM) :], len(_BOM)
        ledger.separator_bytes += offset
    for piece in _pieces(text_range, content, config):
        if not piece.content and is_text:
            ledger.separator_bytes += piece.length
        elif piece.reaches_end and text_range.is_cut_off:
            _skip(ledger, text_range, offset, piece, "cut_off")
        elif piece.is_too_long:
            _skip(ledger, text_range, offset, piece, "too_long")
        else:
            text, utf8, reason = _text(piece.content, text_range.kind, config)
            if text is None:
                _skip(ledger, text_range, offset, piece, reason, _new_detail(reason, piece.content, details))
            elif keep is not None and not _keeps(keep, text, f"the document at {offset} of {text_range.path}"):
                ledger.filtered_documents += 1
                ledger.filtered_bytes += len(piece.content)
                ledger.separator_bytes += piece.length - len(piece.content)
            else:
                ledger.documents += 1
                ledger.document_bytes += len(piece.content)
                ledger.separator_bytes += piece.length - len(piece.content)
                yield _document(text, utf8, len(piece.content), offset, config, ledger)
        offset += piece.length if is_text else 1
    if ledger.unaccounted_bytes:
        raise CorpusError(
            f"the ledger of {text_range.path} from {text_range.start} to {text_range.stop} does not add up: "
            f"{ledger.unaccounted_bytes} bytes unaccounted. This is a bug: please report the file"
        )


def _document(text: str, utf8: bytes, length: int, offset: int, config: CorpusConfig, ledger: Ledger) -> Document:
    text_bytes = len(utf8)
    if config.normalize:
        normalized = unicodedata.normalize(config.normalize, text)
        ledger.normalized_documents += normalized != text
        text, utf8 = normalized, normalized.encode()
    return Document(text, utf8, text_bytes, offset, length, hash_text(utf8))


def _keeps(keep: Callable[[str], bool], text: str, where: str) -> bool:
    try:
        return keep(text)
    except Exception as error:
        raise ConfigError(f"corpus.filter: {type(error).__name__} at {where}: {error}") from error


def _predicate(name: str) -> Callable[[str], bool] | None:
    """The function of a dotted name, None for no name. Raises ConfigError if there is no such function."""
    if not name:
        return None
    module, _, function = name.rpartition(".")
    try:
        found: Callable[[str], bool] = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"corpus.filter: there is no {name} ({error}); give package.module.function") from error
    return found


# --- pieces of a text range ---


@dataclass(slots=True)
class _Piece:
    """``length`` bytes of a file: ``content``, then separator bytes.

    Of a piece that is too long ``content`` is only the beginning.
    """

    content: bytes
    length: int
    reaches_end: bool = False
    is_too_long: bool = False


def _skip(ledger: Ledger, text_range: TextRange, offset: int, piece: _Piece, reason: str, detail: str = "") -> None:
    length = piece.length if piece.is_too_long else len(piece.content)
    ledger.skipped.append(Skip(text_range.path, offset, length, reason, detail=detail, content=piece.content))
    ledger.separator_bytes += piece.length - length


def _pieces(text_range: TextRange, content: bytes, config: CorpusConfig) -> Iterator[_Piece]:
    limit = config.max_document_bytes
    if text_range.ends is not None:
        return _rows(content, text_range.ends.tolist(), limit)
    unit = unit_of(text_range.kind, config)
    if unit == "file":
        return _whole(content, limit)
    return _lines(content, limit) if unit == "line" else _paragraphs(content, limit)


def _rows(content: bytes, ends: list[int], limit: int) -> Iterator[_Piece]:
    for start, end in zip([0, *ends], ends, strict=False):
        yield _Piece(content[start:end], end - start, is_too_long=end - start > limit)


def _whole(content: bytes, limit: int) -> Iterator[_Piece]:
    if content:
        yield _Piece(content[: limit + 1], len(content), reaches_end=True, is_too_long=len(content) > limit)


def _lines(content: bytes, limit: int) -> Iterator[_Piece]:
    """Lines. Several blank lines are one piece without content.

    A line ends in LF, CR LF, CR, or CR CR LF (in text that was converted twice). U+2028 ends no line.
    """
    is_cr = has_lone_cr(content)
    blank_lines = _BLANK_CR_LINES if is_cr else _BLANK_LINES
    start = 0
    while start < len(content):
        # Bounded, so that it holds no blank line of more than ``limit`` bytes.
        if content[start] <= 32 and (blank := blank_lines.match(content, start, start + limit)):
            yield _Piece(b"", blank.end() - start)
            start = blank.end()
            continue
        end, stop = _line_end(content, start, is_cr)
        line = content[start : min(end, start + limit + 1)]
        if line.isspace() and len(line) <= limit:
            line = b""
        yield _Piece(line, stop - start, bool(line) and end == stop, is_too_long=len(line) > limit)
        start = stop


def _line_end(content: bytes, start: int, is_cr: bool) -> tuple[int, int]:
    """End of the line that begins at ``start``, and start of the next line."""
    if is_cr:
        found = _LINE_END.search(content, start)
        return found.span() if found else (len(content), len(content))
    end = content.find(b"\n", start)
    if end < 0:
        return len(content), len(content)
    return end - content.endswith(b"\r", start, end), end + 1


def _paragraphs(content: bytes, limit: int) -> Iterator[_Piece]:
    """Runs of lines without a blank line, with their line ends unchanged."""
    start = stop = offset = 0
    for line in _lines(content, limit):
        if line.content:
            stop = offset + (line.length if line.is_too_long else len(line.content))
        else:
            if start < offset:
                yield _paragraph(content, start, stop, offset, limit)
            start = offset + line.length
            yield line
        offset += line.length
    if start < offset:
        yield _paragraph(content, start, stop, offset, limit)


def _paragraph(content: bytes, start: int, stop: int, end: int, limit: int) -> _Piece:
    """Text from ``start`` to ``stop`` and separators from there to ``end``."""
    text = content[start : min(stop, start + limit + 1)]
    return _Piece(text, end - start, end == len(content), is_too_long=len(text) > limit)


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
