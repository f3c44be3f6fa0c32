"""Files to documents, with a ledger of every byte.

``read_documents`` streams one file's documents; memory is bounded by ``max_document_bytes`` whatever the file
holds. Text that cannot be used (invalid UTF-8, broken JSON, a document that is too long ...) costs only itself and gets
a row in the ledger: bytes read = bytes in documents + separators + skipped, checked for every file.
"""

import hashlib
import io
import json
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from lmcore.config import CorpusConfig
from lmcore.corpus import SourceFile
from lmcore.errors import CorpusError

_READ_BYTES = 2**20
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Document:
    """One text, its place in the decompressed file (bytes), and the BLAKE2b-128 digest of the text."""

    text: str
    utf8: bytes
    offset: int
    length: int
    digest: bytes

    @property
    def hash(self) -> int:
        """64 bits that name the text."""
        return int.from_bytes(self.digest[:8], "little")

    def is_validation(self, fraction: float) -> bool:
        """True for the same texts in every corpus: those whose hash is in the lowest ``fraction``."""
        return self.hash < fraction * 2**64


@dataclass(frozen=True, slots=True)
class Skip:
    """A piece of a file that became no document."""

    path: str
    offset: int
    length: int
    reason: str


@dataclass
class Ledger:
    """Where the bytes of some files went. Bytes are decompressed bytes unless named stored."""

    documents: int = 0
    source_bytes: int = 0
    document_bytes: int = 0
    separator_bytes: int = 0
    stored_bytes: int = 0
    undecodable_stored_bytes: int = 0
    """Of compressed files: the stored bytes from the first block that could not be unpacked."""
    skipped: list[Skip] = field(default_factory=list)

    @property
    def skipped_bytes(self) -> int:
        return sum(skip.length for skip in self.skipped)

    @property
    def unaccounted_bytes(self) -> int:
        """Zero, unless this program has lost text."""
        return self.source_bytes - self.document_bytes - self.separator_bytes - self.skipped_bytes

    def add(self, other: "Ledger") -> None:
        self.documents += other.documents
        self.source_bytes += other.source_bytes
        self.document_bytes += other.document_bytes
        self.separator_bytes += other.separator_bytes
        self.stored_bytes += other.stored_bytes
        self.undecodable_stored_bytes += other.undecodable_stored_bytes
        self.skipped += other.skipped

    def by_reason(self) -> dict[str, dict[str, int]]:
        reasons: dict[str, dict[str, int]] = {}
        for skip in self.skipped:
            row = reasons.setdefault(skip.reason, {"pieces": 0, "bytes": 0})
            row["pieces"] += 1
            row["bytes"] += skip.length
        return dict(sorted(reasons.items()))

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "source_bytes": self.source_bytes,
            "document_bytes": self.document_bytes,
            "separator_bytes": self.separator_bytes,
            "skipped_bytes": self.skipped_bytes,
            "unaccounted_bytes": self.unaccounted_bytes,
            "stored_bytes": self.stored_bytes,
            "undecodable_stored_bytes": self.undecodable_stored_bytes,
            "skipped": self.by_reason(),
            "skips": [
                {"path": s.path, "offset": s.offset, "length": s.length, "reason": s.reason}
                for s in sorted(self.skipped, key=lambda s: (s.path, s.offset))
            ],
        }


def read_documents(file: SourceFile, config: CorpusConfig, ledger: Ledger) -> Iterator[Document]:
    """Stream the documents of one file and account for every byte of it in ``ledger``.

    Raises CorpusError when the file cannot be read or is not the one that was scanned.
    """
    blocks = _Blocks(file, ledger)
    stream = io.BufferedReader(blocks, _READ_BYTES)
    offset = 0
    if stream.peek(len(_BOM))[: len(_BOM)] == _BOM:
        offset = len(stream.read(len(_BOM)))
        ledger.separator_bytes += offset
    for piece in _pieces(stream, file, config):
        text = None
        if not piece.content:
            ledger.separator_bytes += piece.length
        elif piece.reaches_end and blocks.cut_off:
            _skip(ledger, file, offset, piece, "cut_off")
        elif piece.is_too_long:
            _skip(ledger, file, offset, piece, "too_long")
        else:
            text, reason = _text(piece.content, file, config)
            if text is None:
                _skip(ledger, file, offset, piece, reason)
        if text is not None:
            utf8 = text.encode() if file.is_jsonl else piece.content
            digest = hashlib.blake2b(utf8, digest_size=16).digest()
            ledger.documents += 1
            ledger.document_bytes += len(piece.content)
            ledger.separator_bytes += piece.length - len(piece.content)
            yield Document(text, utf8, offset, len(piece.content), digest)
        offset += piece.length
    if blocks.problem:
        ledger.skipped.append(Skip(file.path, offset, 0, blocks.problem))
    if blocks.blake2b != file.blake2b:
        raise CorpusError(f"{file.path} changed while it was read: start again when nobody writes to it")


@dataclass(slots=True)
class _Piece:
    """``length`` bytes of a file: ``content``, then separator bytes. Of a piece that is too long,
    content is only the beginning."""

    content: bytes
    length: int
    reaches_end: bool = False
    is_too_long: bool = False


def _skip(ledger: Ledger, file: SourceFile, offset: int, piece: _Piece, reason: str) -> None:
    length = piece.length if piece.is_too_long else len(piece.content)
    ledger.skipped.append(Skip(file.path, offset, length, reason))
    ledger.separator_bytes += piece.length - length


def _pieces(stream: BinaryIO, file: SourceFile, config: CorpusConfig) -> Iterator[_Piece]:
    unit = config.document
    if file.is_jsonl:
        unit = "line"
    elif unit == "auto":
        unit = "line" if file.kind.startswith("txt") else "file"
    limit = config.max_document_bytes
    if unit == "file":
        return _whole(stream, limit)
    lines = _lines(stream, limit)
    return lines if unit == "line" else _paragraphs(lines, limit)


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


def _text(content: bytes, file: SourceFile, config: CorpusConfig) -> tuple[str | None, str]:
    """The text of a piece, or None and the reason why there is none."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        return None, "invalid_utf8"
    if not file.is_jsonl:
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


class _Blocks(io.RawIOBase):
    """The decompressed bytes of a file as a raw stream; counts them, and hashes the stored ones."""

    def __init__(self, file: SourceFile, ledger: Ledger) -> None:
        self._ledger = ledger
        self._hash = hashlib.blake2b(digest_size=16)
        self._left = memoryview(b"")
        self.problem = ""
        stored = self._stored(file.path)
        self._blocks = self._gunzip(stored) if file.is_gzip else stored

    @property
    def blake2b(self) -> str:
        return self._hash.hexdigest()

    @property
    def cut_off(self) -> bool:
        """True when the last bytes given were not the end of the text."""
        return self.problem in ("truncated_gzip", "damaged_gzip")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._left:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._ledger.source_bytes += len(block)
            self._left = memoryview(block)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count

    def _stored(self, path: str) -> Iterator[bytes]:
        try:
            with open(path, "rb") as file:
                while block := file.read(_READ_BYTES):
                    self._hash.update(block)
                    self._ledger.stored_bytes += len(block)
                    yield block
        except OSError as error:
            raise CorpusError(f"{path} cannot be read: {error.strerror}") from error

    def _gunzip(self, stored: Iterator[bytes]) -> Iterator[bytes]:
        """Unpack all members of a gzip file; from the first error on, nothing can be unpacked."""
        member = zlib.decompressobj(wbits=31)
        between_members = False
        for block in stored:
            while block:
                if member.eof:
                    block = block.lstrip(b"\0")
                    # zlib looks at a header only when it has two bytes of it: a single one is judged here.
                    if block and not block.startswith(b"\x1f"):
                        self._give_up("garbage_after_gzip", block, stored)
                        return
                    if block:
                        member, between_members = zlib.decompressobj(wbits=31), True
                    continue
                before = member.copy()
                try:
                    data = member.decompress(block, _READ_BYTES)
                except zlib.error:
                    block = yield from self._last_bytes(before, block)
                    self._give_up("garbage_after_gzip" if between_members else "damaged_gzip", block, stored)
                    return
                block = member.unconsumed_tail or member.unused_data
                if data:
                    between_members = False
                    yield data
        if not member.eof:
            self.problem = "truncated_gzip"

    def _give_up(self, problem: str, block: bytes, stored: Iterator[bytes]) -> None:
        """Read the rest without unpacking it."""
        self.problem = problem
        self._ledger.undecodable_stored_bytes += len(block) + sum(map(len, stored))

    @staticmethod
    def _last_bytes(member: Any, block: bytes) -> Generator[bytes, None, bytes]:
        """What can be unpacked before an error, to a kilobyte; returns the stored bytes left."""
        while True:
            try:
                data = member.decompress(block, 1024)
            except zlib.error:
                return block
            block = member.unconsumed_tail
            yield data
