"""Files to spans: pieces of about ``chunk_bytes`` that begin and end where documents do.

Where a span ends is said by the documents themselves (a few of a document's bytes and its length), so an
insertion or deletion changes the spans it touches and no others. Nothing is parsed here: one reader keeps many
encoders busy. A document beyond ``max_document_bytes`` is streamed past, so memory is bounded by a few
``chunk_bytes`` whatever a text holds. See tables.py for what a table takes besides.
"""

import logging
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
from blake3 import blake3

from lmcore.corpus.compression import Unpacked, is_bomb
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.remote import is_url, open_stored
from lmcore.corpus.scan import SourceFile
from lmcore.corpus.tables import ROW_BYTES, TableError, table_texts
from lmcore.errors import FileChangedError, no_space_named
from lmcore.settings.config import CorpusConfig
from lmcore.store.files import DIGEST_BYTES

CUT_VERSION = 3
"""Of the rule by which documents end spans: an outline by another one is not relied upon."""

_READ_BYTES = 2**20
_LONGEST_BLANK_LINE = 4096
_HEAD_BYTES = 32
_LONE_CR = re.compile(rb"\r(?!\n)")
"""Where these are, lines end elsewhere than they did when chunks had no such mark in their names."""

_log = logging.getLogger(__name__)

Ends = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class TextRange:
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
        lines = " CR" if self.ends is None and has_lone_cr(self.content) else ""
        digest = blake3(f"{self.kind} {self.start == 0} {self.is_cut_off}{lines}".encode())
        digest.update(self.content)
        if self.ends is not None:
            digest.update(self.ends.tobytes())
        return digest.digest(DIGEST_BYTES)


def read_ranges(file: SourceFile, config: CorpusConfig, ledger: Ledger) -> Iterator[TextRange]:
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


def has_lone_cr(content: bytes) -> bool:
    """Whether some line ends in a CR, or in CR CR LF."""
    return b"\r" in content and _LONE_CR.search(content) is not None


def unit_of(file_kind: str, config: CorpusConfig) -> str:
    """What one document of a file of this kind is: row, line, paragraph or file."""
    if file_kind in ("parquet", "arrow"):
        return "row"
    if file_kind == "jsonl":
        return "line"
    if config.document == "auto":
        return {"txt": "line", "paragraphs": "paragraph"}.get(file_kind, "file")
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


def _text_spans(file: SourceFile, config: CorpusConfig, ledger: Ledger, stored: Iterator[bytes]) -> Iterator[TextRange]:
    unpacked = Unpacked(stored, file.compression, config.max_expansion) if file.compression else None
    cutter = _Cutter(file, config, ledger)
    for block in unpacked or stored:
        ledger.source_bytes += len(block)
        yield from cutter.feed(block)
    yield from cutter.finish(unpacked is not None and unpacked.is_cut_off)
    if unpacked is not None:
        ledger.undecodable_stored_bytes += unpacked.undecodable_bytes
        if unpacked.problem:
            lost = 0 if ledger.source_bytes else file.stored_bytes
            ledger.skipped.append(Skip(file.path, ledger.source_bytes, 0, unpacked.problem, stored=lost))


def _decided(content: bytearray) -> int:
    """Up to where a content says which of its bytes end lines: a CR at its end may belong to a LF that follows."""
    return len(content) - (2 if content.endswith(b"\r\r") else 1 if content.endswith(b"\r") else 0)


def _line_ends(content: bytearray, searched: int, stop: int, is_line: bool = True) -> Ends:
    """Ends of lines from ``searched`` to ``stop``: after a LF, and after a CR that none follows (nor CR LF)."""
    codes = np.frombuffer(content, np.uint8)
    ends: Ends = np.flatnonzero(codes[searched:stop] == 10) + (searched + 1)
    if content.find(b"\r", searched, stop) >= 0:
        places = np.flatnonzero(codes[searched:stop] == 13) + searched
        after, last = codes[np.minimum(places + 1, len(codes) - 1)], codes[np.minimum(places + 2, len(codes) - 1)]
        lone = places[(after != 10) & ~((after == 13) & (last == 10))]
        ends = np.union1d(ends, lone + 1)
    return ends


def _paragraph_ends(content: bytearray, searched: int, stop: int, is_line: bool = True) -> Ends:
    """Ends of blank lines; ``is_line`` says that the content begins where a line does, but not the file."""
    low = max(0, searched - _LONGEST_BLANK_LINE)
    # The line that the last block ended in, once more.
    begin = max(content.rfind(b"\n", low, searched), content.rfind(b"\r", low, searched))
    lines = _line_ends(content, max(begin, low), stop)
    if begin < 0 and low == 0 and is_line:
        lines = np.concatenate([[0], lines])
    starts, ends = lines[:-1], lines[1:]
    is_blank = ends - starts == 1
    first = np.frombuffer(content, np.uint8)[starts]
    for line in np.flatnonzero((first <= 32) & ~is_blank & (ends - starts <= _LONGEST_BLANK_LINE)).tolist():
        is_blank[line] = content[starts[line] : ends[line]].isspace()
    found: Ends = ends[is_blank]
    return found


def _no_ends(content: bytearray, searched: int, stop: int, is_line: bool = True) -> Ends:
    return np.empty(0, np.int64)


_ENDS: dict[str, Callable[[bytearray, int, int, bool], Ends]] = {
    "line": _line_ends,
    "paragraph": _paragraph_ends,
    "file": _no_ends,
}


class _Cutter:
    """Cuts a growing content after the first document that says so, once a span is long enough."""

    def __init__(self, file: SourceFile, config: CorpusConfig, ledger: Ledger) -> None:
        self._file, self._ledger = file, ledger
        self._find_ends = _ENDS.get(unit_of(file.kind, config))
        self._shortest, self._between, self._longest = range_bytes(config.chunk_bytes)
        self._limit = config.max_document_bytes + len(b"\r\n") + _LONGEST_BLANK_LINE
        self._content = bytearray()
        self._offset = self._row = 0
        """Of the content's first byte and document in the file."""
        self._end = 0
        """Of the last whole document in the content."""
        self._marked = self._rows = np.empty(0, np.int64)
        """Ends of the documents that may end a span, and of all rows of a table."""
        self._searched = 0
        self._is_passing = False
        self._passed = 0
        """Bytes of a too long document that are gone already."""

    def feed(self, block: bytes, ends_in_block: Ends | None = None) -> Iterator[TextRange]:
        self._content += block
        if ends_in_block is None:
            stop = _decided(self._content)
            ends = self._find(self._searched, stop)
        else:
            stop, ends = len(self._content), ends_in_block + self._searched
        self._searched = stop
        if self._is_passing:
            ends = self._pass_by(ends)
        yield from self._cut(ends)
        if self._rows.size > self._longest // ROW_BYTES:  # of next to nothing
            yield from self._flush()
        if not self._is_passing and len(self._content) - self._end > self._limit:
            yield from self._flush()
            self._is_passing = True
            self._pass_by(ends[:0])

    def finish(self, is_cut_off: bool) -> Iterator[TextRange]:
        if self._is_passing:
            self._skip(len(self._content))
            return
        if len(self._content) > self._end:
            yield from self._cut(np.array([len(self._content)], np.int64), is_cut_off)
        yield from self._flush(is_cut_off)

    def _find(self, searched: int, stop: int) -> Ends:
        assert self._find_ends is not None
        is_line = self._offset > 0 and not self._is_passing
        return self._find_ends(self._content, searched, stop, is_line)

    def _cut(self, ends: Ends, is_cut_off: bool = False) -> Iterator[TextRange]:
        """Take up the documents that end at ``ends``; too long ones stand between spans, wherever blocks end."""
        while ends.size:
            long = np.flatnonzero(np.diff(ends, prepend=self._end) > self._limit)
            count = int(long[0]) if long.size else ends.size
            self._add(ends[:count])
            offset = self._offset
            yield from self._complete_spans(is_cut_off)
            ends = ends[count:]
            if ends.size:
                yield from self._flush()
                ends = self._pass_by(ends - (self._offset - offset))

    def _add(self, ends: Ends) -> None:
        if not ends.size:
            return
        starts = np.concatenate([[self._end], ends[:-1]])
        self._end = int(ends[-1])
        if self._find_ends is None:
            self._rows = np.concatenate([self._rows, ends])
        # Of one byte: an empty line, which ends no span (nor does an empty row); there may be very many.
        may_end = ends - starts > 1 if self._find_ends else ends > starts
        starts, ends = starts[may_end], ends[may_end]
        marked = ends[_ends_span(self._content, starts, ends, self._between)]
        self._marked = np.concatenate([self._marked, marked])

    def _complete_spans(self, is_cut_off: bool) -> Iterator[TextRange]:
        while True:
            stops = self._marked[np.searchsorted(self._marked, self._shortest) :][:1].tolist()
            if self._end >= self._longest:
                ends = self._find(self._longest - 1, self._searched) if self._find_ends else self._rows
                stops += ends[np.searchsorted(ends, self._longest) :][:1].tolist() or [self._end]
            if not stops:
                return
            yield self._take(min(stops), is_cut_off, int(np.searchsorted(self._rows, min(stops))) + 1)

    def _flush(self, is_cut_off: bool = False) -> Iterator[TextRange]:
        if self._end or self._rows.size:
            yield self._take(self._end, is_cut_off, self._rows.size)

    def _take(self, stop: int, is_cut_off: bool, rows: int) -> TextRange:
        ends = self._rows[:rows]
        with memoryview(self._content) as view:
            content = bytes(view[:stop])
        is_cut_off = is_cut_off and stop == len(self._content)
        is_table = self._find_ends is None
        start, length = (self._row, rows) if is_table else (self._offset, stop)
        self._row += rows
        self._rows = self._rows[rows:]
        self._drop(stop)
        return TextRange(
            self._file.path,
            self._file.kind,
            start,
            start + length,
            content,
            ends if is_table else None,
            is_cut_off,
        )

    def _drop(self, count: int) -> None:
        del self._content[:count]
        self._offset += count
        self._searched -= count
        self._end = max(0, self._end - count)
        self._rows = self._rows - count
        self._marked = self._marked[np.searchsorted(self._marked, count, "right") :] - count

    def _pass_by(self, ends: Ends) -> Ends:
        """Drop what belongs to a too long document, the first one; ``ends`` without it, relative to what is left."""
        if ends.size:
            stop = int(ends[0])
            self._skip(stop)
            self._drop(stop)
            return ends[1:] - stop
        last = max(0, self._content.rfind(b"\n"), self._content.rfind(b"\r", 0, self._searched))
        keep = min(len(self._content) - min(last, self._searched), _LONGEST_BLANK_LINE)
        self._passed += len(self._content) - keep
        self._drop(len(self._content) - keep)
        return ends

    def _skip(self, rest: int) -> None:
        place = self._row if self._find_ends is None else self._offset - self._passed
        self._ledger.skipped.append(Skip(self._file.path, place, self._passed + rest, "too_long"))
        self._row += 1
        self._is_passing, self._passed = False, 0


def range_bytes(target: int) -> tuple[int, int, int]:
    """The shortest span, the bytes from there to its end on average, and the longest span.

    So they have ``target`` bytes on average, and one in ten is cut by force: an insertion before it moves such a cut.
    """
    return target // 4, target - target // 4, target * 2


def _ends_span(content: bytearray, starts: Ends, ends: Ends, between: int) -> npt.NDArray[np.bool_]:
    """True for a document with probability length / between: the same for the same one, wherever it stands.

    Its length and eight bytes spread over it are hashed, and of one that has as many its first 32, where numbers and
    titles tell documents apart that are alike otherwise. So one takes some 200 ns, whatever its size.
    """
    lengths = ends - starts
    places = starts[:, None] + (lengths - 1)[:, None] * np.arange(8) // 7
    samples = np.frombuffer(content, np.uint8)[places].view(np.uint64)[:, 0]
    hashes = mix(samples ^ mix(lengths.astype(np.uint64)))
    words = np.ndarray(max(0, len(content) - 7), np.uint64, content, strides=(1,))  # one begins at every byte
    long = np.flatnonzero(lengths >= _HEAD_BYTES)
    for offset in range(0, _HEAD_BYTES, 8):
        hashes[long] = mix(hashes[long] ^ words[starts[long] + offset])
    return np.asarray(hashes < np.minimum(lengths / between, 0.999) * 2.0**64)


# --- tables ---


def _table_spans(file: SourceFile, stream: IO[bytes], config: CorpusConfig, ledger: Ledger) -> Iterator[TextRange]:
    cutter = _Cutter(file, config, ledger)
    problem, detail, rows = "", "", 0
    try:
        for content, lengths in table_texts(stream, file, config):
            ledger.source_bytes += len(content)
            rows += len(lengths)
            yield from cutter.feed(content, np.cumsum(lengths))
            if is_bomb(ledger.source_bytes + rows * ROW_BYTES, file.stored_bytes, config.max_expansion):
                raise TableError("decompression_bomb")
    except TableError as error:
        problem, detail = str(error), error.detail
        ledger.undecodable_stored_bytes += 0 if rows else file.stored_bytes
    except (pa.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # it is the disk or a limit of the system, and no damage
        _log.warning("%s cannot be read from here on: %s", file.path, error)
        problem = "damaged_table"
        ledger.undecodable_stored_bytes += file.stored_bytes
    yield from cutter.finish(False)
    if problem or not rows:
        lost = 0 if rows else file.stored_bytes
        ledger.skipped.append(Skip(file.path, 0, 0, problem or "empty_table", stored=lost, detail=detail))


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
