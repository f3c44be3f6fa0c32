"""Spans to documents, with a ledger of every byte.

Text that cannot be used (invalid UTF-8, broken JSON, a document that is too long ...) costs only itself and gets a
row in the ledger: bytes of a span = bytes in documents + separators + skipped, checked for every span.
"""

import importlib
import io
import json
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from lmcore.config import CorpusConfig
from lmcore.corpus import SourceFile
from lmcore.errors import ConfigError, CorpusError
from lmcore.ledger import Ledger, Skip
from lmcore.spans import Span, read_spans, unit_of
from lmcore.store import hash_text

_READ_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Document:
    """One text and its place in the file: bytes of the decompressed file, or the row of a table."""

    text: str
    """As corpus.normalize leaves it."""
    text_bytes: int
    """UTF-8 bytes of the text as it stands in the file."""
    offset: int
    length: int
    hash: int
    """64 bits that name the text as it stands in the file: the beginning of its BLAKE2b digest."""

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
            text, reason = _text(piece.content, span.kind, config)
            if text is not None and keep is not None and not keep(text):
                text, reason = None, "filter"
            if text is None:
                _skip(ledger, span, offset, piece, reason)
        if text is not None:
            ledger.documents += 1
            ledger.document_bytes += len(piece.content)
            ledger.separator_bytes += piece.length - len(piece.content)
            yield _document(text, piece, span.kind, offset, config, ledger)
        offset += piece.length if span.ends is None else 1
    if ledger.unaccounted_bytes:
        raise CorpusError(
            f"the ledger of {span.path} from {span.start} to {span.stop} does not add up: "
            f"{ledger.unaccounted_bytes} bytes unaccounted. This is a bug: please report the file"
        )


def _document(text: str, piece: "_Piece", kind: str, offset: int, config: CorpusConfig, ledger: Ledger) -> Document:
    utf8 = text.encode() if kind == "jsonl" else piece.content
    hashed = hash_text(utf8)
    if config.normalize:
        normalized = unicodedata.normalize(config.normalize, text)
        ledger.normalized_documents += normalized != text
        text = normalized
    return Document(text, len(utf8), offset, len(piece.content), hashed)


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
    ledger.skipped.append(Skip(span.path, offset, length, reason, piece.content))
    ledger.separator_bytes += piece.length - length


def _pieces(span: Span, content: bytes, config: CorpusConfig) -> Iterator[_Piece]:
    limit = config.max_document_bytes
    if span.ends is not None:
        return _rows(content, span.ends.tolist(), limit)
    unit = unit_of(span.kind, config)
    stream = io.BytesIO(content)
    if unit == "file":
        return _whole(stream, limit)
    lines = _lines(stream, limit)
    return lines if unit == "line" else _paragraphs(lines, limit)


def _rows(content: bytes, ends: list[int], limit: int) -> Iterator[_Piece]:
    for start, end in zip([0, *ends], ends, strict=False):
        yield _Piece(content[start:end], end - start, is_too_long=end - start > limit)


def _whole(stream: BinaryIO, limit: int) -> Iterator[_Piece]:
    content = stream.read(limit + 1)
    length = len(content)
    while block := stream.read(_READ_BYTES):
        length += len(block)
    if length:
        yield _Piece(content, length, reaches_end=True, is_too_long=length > limit)


def _lines(stream: BinaryIO, limit: int) -> Iterator[_Piece]:
    """Lines; the content of a blank one is empty, and a line end is LF or CR LF."""
    while line := stream.readline(limit + 2):
        length = len(line)
        if not line.endswith(b"\n") and length > limit:
            while more := stream.readline(_READ_BYTES):
                length += len(more)
                line = more
                if more.endswith(b"\n"):
                    break
            yield _Piece(line, length, not line.endswith(b"\n"), is_too_long=True)
            continue
        content = line.removesuffix(b"\n").removesuffix(b"\r") if line.endswith(b"\n") else line
        if content.isspace():
            content = b""
        yield _Piece(content, length, content is line, is_too_long=len(content) > limit)


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


def _text(content: bytes, kind: str, config: CorpusConfig) -> tuple[str | None, str]:
    """The text of a piece, or None and the reason why there is none."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None, "invalid_utf8"
    if kind != "jsonl":
        return (text, "") if text.strip() else (None, "empty_text")
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None, "invalid_json"
    if not isinstance(row, dict):
        return None, "not_an_object"
    if config.text_field not in row:
        return None, "no_text_field"
    value = row[config.text_field]
    if not isinstance(value, str):
        return None, "text_is_no_string"
    if not value.strip():
        return None, "empty_text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return None, "lone_surrogate"
    return value, ""
