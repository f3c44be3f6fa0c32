"""Files to spans: pieces of about ``chunk_bytes`` that begin and end where documents do.

Where a span ends is said by the documents themselves (a few of a document's bytes and its length), so an
insertion or deletion changes the spans it touches and no others. Nothing is parsed here: one reader keeps many
encoders busy. A document beyond ``max_document_bytes`` is streamed past, so memory is bounded by a few
``chunk_bytes`` whatever the file holds.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from blake3 import blake3

from lmcore.compression import Unpacked
from lmcore.config import CorpusConfig
from lmcore.corpus import SourceFile
from lmcore.errors import FileChangedError, no_space_named
from lmcore.ledger import Ledger, Skip
from lmcore.remote import is_url, open_stored
from lmcore.shuffle import mix
from lmcore.store import DIGEST_BYTES

_READ_BYTES = 2**20
_ROWS = 4096
_LONGEST_BLANK_LINE = 4096
_BLANK_LINE = re.compile(rb"(?<=\n)[ \t\r\v\f]*\n")

Ends = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Span:
    """Documents that stand together in a file, unparsed.

    ``start`` and ``stop`` count bytes of the decompressed file, or rows of a table; ``ends`` says where each
    row of a table ends in ``content``, text says that itself.
    """

    path: str
    kind: str
    start: int
    stop: int
    content: bytes
    ends: Ends | None = None
    is_cut_off: bool = False
    """The last document is only a beginning."""

    def digest(self) -> bytes:
        """Names what is in it, not where it stands."""
        digest = blake3(f"{self.kind} {self.start == 0} {self.is_cut_off}".encode())
        digest.update(self.content)
        if self.ends is not None:
            digest.update(self.ends.tobytes())
        return digest.digest(DIGEST_BYTES)


def read_spans(file: SourceFile, config: CorpusConfig, ledger: Ledger) -> Iterator[Span]:
    """The spans of one file, in order; ``ledger`` gets its size and what no span holds.

    Raises FileChangedError, after the last span, when the file is not the one that was scanned, and
    before the first one when it cannot be read.
    """
    digest = blake3()
    stored = _stored(file, ledger, digest)
    if file.is_table and is_url(file.path):
        with no_space_named(Path(gettempdir())), TemporaryFile() as copy:  # once through the network, and seekable
            copy.writelines(stored)
            copy.seek(0)
            yield from _table_spans(file, copy, config, ledger)
    elif file.is_table:
        with _opened(file) as stream:
            yield from _table_spans(file, stream, config, ledger)
        for _ in stored:
            pass
    else:
        yield from _text_spans(file, config, ledger, stored)
    if digest.hexdigest(DIGEST_BYTES) != file.digest:
        raise FileChangedError(file.path, "changed_while_read")


def unit_of(file_kind: str, config: CorpusConfig) -> str:
    """What one document of a file of this kind is: row, line, paragraph or file."""
    if file_kind in ("parquet", "arrow"):
        return "row"
    if file_kind == "jsonl":
        return "line"
    if config.document == "auto":
        return "line" if file_kind == "txt" else "file"
    return config.document


def _stored(file: SourceFile, ledger: Ledger, digest: Any) -> Iterator[bytes]:
    with _opened(file) as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
            ledger.stored_bytes += len(block)
            yield block


@contextmanager
def _opened(file: SourceFile) -> Iterator[IO[bytes]]:
    try:
        with open_stored(file.path) as stream:
            yield stream
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise FileChangedError(file.path, "unreadable") from error


# --- text ---


def _text_spans(file: SourceFile, config: CorpusConfig, ledger: Ledger, stored: Iterator[bytes]) -> Iterator[Span]:
    unpacked = Unpacked(stored, file.compression, config.max_expansion) if file.compression else None
    cutter = _Cutter(file, config, ledger)
    for block in unpacked or stored:
        ledger.source_bytes += len(block)
        yield from cutter.feed(block)
    yield from cutter.finish(unpacked is not None and unpacked.is_cut_off)
    if unpacked is not None:
        ledger.undecodable_stored_bytes += unpacked.undecodable_bytes
        if unpacked.problem:
            ledger.skipped.append(Skip(file.path, ledger.source_bytes, 0, unpacked.problem))


def _line_ends(content: bytearray, searched: int) -> Ends:
    return np.flatnonzero(np.frombuffer(content, np.uint8, offset=searched) == 10) + (searched + 1)


def _paragraph_ends(content: bytearray, searched: int) -> Ends:
    begin = max(0, content.rfind(b"\n", 0, searched))  # the line that the last block ended in, once more
    return np.array([m.end() for m in _BLANK_LINE.finditer(content, begin) if m.end() > searched], np.int64)


def _no_ends(content: bytearray, searched: int) -> Ends:
    return np.empty(0, np.int64)


_ENDS: dict[str, Callable[[bytearray, int], Ends]] = {
    "line": _line_ends,
    "paragraph": _paragraph_ends,
    "file": _no_ends,
}


class _Cutter:
    """Cuts a growing content after the first document that says so, once a span is long enough."""

    def __init__(self, file: SourceFile, config: CorpusConfig, ledger: Ledger) -> None:
        self._file, self._ledger = file, ledger
        self._find_ends = _ENDS.get(unit_of(file.kind, config))
        self._target = config.chunk_bytes
        self._shortest, self._longest = config.chunk_bytes // 4, config.chunk_bytes * 4
        self._limit = config.max_document_bytes + len(b"\r\n") + _LONGEST_BLANK_LINE
        self._content = bytearray()
        self._offset = self._row = 0
        """Of the content's first byte and document in the file."""
        self._ends: Ends = np.empty(0, np.int64)
        self._marks: npt.NDArray[np.bool_] = np.empty(0, np.bool_)
        self._searched = 0
        self._is_passing = False
        self._passed = 0
        """Bytes of a too long document that are gone already."""

    def feed(self, block: bytes, ends_in_block: Ends | None = None) -> Iterator[Span]:
        self._content += block
        if ends_in_block is None:
            assert self._find_ends is not None
            ends = self._find_ends(self._content, self._searched)
        else:
            ends = ends_in_block + self._searched
        self._searched = len(self._content)
        if self._is_passing:
            ends = self._pass_by(ends)
        yield from self._cut(ends)
        if not self._is_passing and len(self._content) - self._last_end() > self._limit:
            yield from self._flush()
            self._is_passing = True
            self._pass_by(ends[:0])

    def finish(self, is_cut_off: bool) -> Iterator[Span]:
        if self._is_passing:
            self._skip(len(self._content))
            return
        if len(self._content) > self._last_end():
            yield from self._cut(np.array([len(self._content)], np.int64), is_cut_off)
        yield from self._flush(is_cut_off)

    def _last_end(self) -> int:
        return int(self._ends[-1]) if self._ends.size else 0

    def _cut(self, ends: Ends, is_cut_off: bool = False) -> Iterator[Span]:
        """Take up the documents that end at ``ends``; too long ones stand between spans, wherever blocks end."""
        while ends.size:
            long = np.flatnonzero(np.diff(ends, prepend=self._last_end()) > self._limit)
            count = int(long[0]) if long.size else ends.size
            self._add(ends[:count])
            offset = self._offset
            yield from self._complete_spans(is_cut_off)
            ends = ends[count:]
            if ends.size:
                yield from self._flush()
                ends = self._pass_by(ends - (self._offset - offset))

    def _add(self, ends: Ends) -> None:
        if ends.size:
            starts = np.concatenate([[self._last_end()], ends[:-1]])
            self._marks = np.concatenate([self._marks, _ends_span(self._content, starts, ends, self._target)])
            self._ends = np.concatenate([self._ends, ends])

    def _complete_spans(self, is_cut_off: bool) -> Iterator[Span]:
        while True:
            first, forced = np.searchsorted(self._ends, [self._shortest, self._longest])
            marked = np.flatnonzero(self._marks[first : forced + 1])
            if not marked.size and forced == self._ends.size:
                return
            last = first + marked[0] if marked.size else forced
            yield self._take(int(last) + 1, is_cut_off)

    def _flush(self, is_cut_off: bool = False) -> Iterator[Span]:
        if self._ends.size:
            yield self._take(self._ends.size, is_cut_off)

    def _take(self, documents: int, is_cut_off: bool) -> Span:
        ends = self._ends[:documents]
        stop = int(ends[-1])
        with memoryview(self._content) as view:
            content = bytes(view[:stop])
        is_cut_off = is_cut_off and stop == len(self._content)
        is_table = self._find_ends is None
        start, length = (self._row, documents) if is_table else (self._offset, stop)
        self._row += documents
        self._drop(stop, documents)
        return Span(
            self._file.path,
            self._file.kind,
            start,
            start + length,
            content,
            ends if is_table else None,
            is_cut_off,
        )

    def _drop(self, count: int, documents: int = 0) -> None:
        del self._content[:count]
        self._offset += count
        self._searched -= count
        self._ends, self._marks = self._ends[documents:] - count, self._marks[documents:]

    def _pass_by(self, ends: Ends) -> Ends:
        """Drop what belongs to a too long document, the first one; ``ends`` without it, relative to what is left."""
        if ends.size:
            stop = int(ends[0])
            self._skip(stop)
            self._drop(stop)
            return ends[1:] - stop
        keep = min(len(self._content) - max(0, self._content.rfind(b"\n")), _LONGEST_BLANK_LINE)
        self._passed += len(self._content) - keep
        self._drop(len(self._content) - keep)
        return ends

    def _skip(self, rest: int) -> None:
        place = self._row if self._find_ends is None else self._offset - self._passed
        self._ledger.skipped.append(Skip(self._file.path, place, self._passed + rest, "too_long"))
        self._row += 1
        self._is_passing, self._passed = False, 0


def _ends_span(content: bytearray, starts: Ends, ends: Ends, target: int) -> npt.NDArray[np.bool_]:
    """True for a document with probability length / target: the same for the same one, wherever it stands.

    Eight bytes spread over the document and its length are hashed, so one takes some 100 ns whatever its size.
    An empty row of a table never ends a span.
    """
    if not content:
        return np.zeros(len(ends), np.bool_)
    lengths = ends - starts
    places = starts[:, None] + (lengths - 1)[:, None] * np.arange(8) // 7
    # Clipped, because the last row, if it is empty, begins where the content ends.
    samples = np.frombuffer(content, np.uint8).take(places, mode="clip").view(np.uint64)[:, 0]
    hashes = mix(samples ^ mix(lengths.astype(np.uint64)))
    return np.asarray(hashes < np.minimum(lengths / target, 0.999) * 2.0**64)


# --- tables ---


def _table_spans(file: SourceFile, stream: IO[bytes], config: CorpusConfig, ledger: Ledger) -> Iterator[Span]:
    cutter = _Cutter(file, config, ledger)
    problem = ""
    try:
        for column in _columns(stream, file.kind, config.text_field):
            ends = np.cumsum(pc.fill_null(pc.binary_length(column), 0).to_numpy(), dtype=np.int64)
            content = b"".join(column.drop_null().to_pylist())
            ledger.source_bytes += len(content)
            yield from cutter.feed(content, ends)
    except KeyError:
        problem = "no_text_field"
    except pa.ArrowTypeError:
        problem = "text_is_no_string"
    except (pa.ArrowException, OSError):
        problem = "damaged_table"
        ledger.undecodable_stored_bytes += file.stored_bytes
    yield from cutter.finish(False)
    if problem:
        ledger.skipped.append(Skip(file.path, 0, 0, problem))


def _columns(stream: Any, kind: str, field: str) -> Iterator[Any]:
    """The text column in parts, as binary, so that text that is no UTF-8 costs a row and not the file."""
    if kind == "parquet":
        table = pq.ParquetFile(stream)
        parts = (batch.column(0) for batch in table.iter_batches(_ROWS, columns=[field]))
        schema = table.schema_arrow
    else:
        table = pa.ipc.open_file(stream)
        parts = (table.get_batch(number).column(field) for number in range(table.num_record_batches))
        schema = table.schema
    kind_of_text = schema.field(field).type
    if pa.types.is_dictionary(kind_of_text):
        kind_of_text = kind_of_text.value_type
    if not (pa.types.is_string(kind_of_text) or pa.types.is_large_string(kind_of_text)):
        raise pa.ArrowTypeError(f"{field} is {kind_of_text}")
    for part in parts:
        yield part.cast(kind_of_text).cast(pa.large_binary())
