"""Cut the documents of a file into text ranges of about ``chunk_bytes``.

A range ends after a document whose hash meets a threshold, once the range is long enough. The documents alone decide,
so an insertion or deletion changes the ranges that it touches and no others. A document longer than
``max_document_bytes`` is read past and is in no range.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.scan import SourceFile
from lmcore.corpus.text_range import Ends, TextRange, unit_of
from lmcore.settings.config import CorpusConfig

CUT_VERSION = 3
"""Version of the rule by which ranges end. A chunk index of another version is not used."""
ROW_BYTES = 8
"""Bytes that a row without text counts for."""
_LONGEST_BLANK_LINE = 4096
_HEAD_BYTES = 32


def _decided(content: bytearray) -> int:
    """Up to where line ends are certain: a CR at the end may belong to an LF that follows."""
    return len(content) - (2 if content.endswith(b"\r\r") else 1 if content.endswith(b"\r") else 0)


def _line_ends(content: bytearray, searched: int, stop: int, is_line: bool) -> Ends:
    """Ends of lines from ``searched`` to ``stop``: after an LF, and after a CR without LF or CR LF behind it."""
    codes = np.frombuffer(content, np.uint8)
    ends: Ends = np.flatnonzero(codes[searched:stop] == 10) + (searched + 1)
    if content.find(b"\r", searched, stop) >= 0:
        returns = np.flatnonzero(codes[searched:stop] == 13) + searched
        after, last = codes[np.minimum(returns + 1, len(codes) - 1)], codes[np.minimum(returns + 2, len(codes) - 1)]
        lone = returns[(after != 10) & ~((after == 13) & (last == 10))]
        ends = np.union1d(ends, lone + 1)
    return ends


def _paragraph_ends(content: bytearray, searched: int, stop: int, is_line: bool) -> Ends:
    """Ends of blank lines. ``is_line``: the content begins at the start of a line, but not of the file."""
    low = max(0, searched - _LONGEST_BLANK_LINE)
    # The line that the last block ended in is searched again.
    begin = max(content.rfind(b"\n", low, searched), content.rfind(b"\r", low, searched))
    lines = _line_ends(content, max(begin, low), stop, is_line)
    if begin < 0 and low == 0 and is_line:
        lines = np.concatenate([[0], lines])
    starts, ends = lines[:-1], lines[1:]
    is_blank = ends - starts == 1
    first = np.frombuffer(content, np.uint8)[starts]
    for line in np.flatnonzero((first <= 32) & ~is_blank & (ends - starts <= _LONGEST_BLANK_LINE)).tolist():
        is_blank[line] = content[starts[line] : ends[line]].isspace()
    found: Ends = ends[is_blank]
    return found


def _no_ends(content: bytearray, searched: int, stop: int, is_line: bool) -> Ends:
    return np.empty(0, np.int64)


_ENDS: dict[str, Callable[[bytearray, int, int, bool], Ends]] = {
    "line": _line_ends,
    "paragraph": _paragraph_ends,
    "file": _no_ends,
}


class RangeCutter:
    """Collects the blocks of a file and yields text ranges as soon as they are complete."""

    def __init__(self, file: SourceFile, config: CorpusConfig, ledger: Ledger) -> None:
        self._file, self._ledger = file, ledger
        self._find_ends = _ENDS.get(unit_of(file.kind, config))
        """None for a table, whose rows come with their ends."""
        self._shortest, self._between, self._longest = range_bytes(config.chunk_bytes)
        self._limit = config.max_document_bytes + len(b"\r\n") + _LONGEST_BLANK_LINE
        self._content = bytearray()
        self._offset = self._row = 0
        """Place in the file of the content's first byte and of its first row."""
        self._end = 0
        """End of the last complete document in the content."""
        self._marked = self._rows = np.empty(0, np.int64)
        """Ends of documents that may end a range, and ends of all rows of a table."""
        self._searched = 0
        self._is_in_long = False
        """The content begins inside a document that is too long."""
        self._long_bytes = 0
        """Bytes of that document that are dropped already."""

    def feed(self, block: bytes, row_ends: Ends | None = None) -> Iterator[TextRange]:
        """The ranges that the next block completes. ``row_ends``: where rows of a table end in the block."""
        self._content += block
        if row_ends is None:
            stop = _decided(self._content)
            ends = self._find(self._searched, stop)
        else:
            stop, ends = len(self._content), row_ends + self._searched
        self._searched = stop
        if self._is_in_long:
            ends = self._drop_long(ends)
        yield from self._cut(ends)
        if self._rows.size > self._longest // ROW_BYTES:  # rows with next to no text
            yield from self._flush()
        if not self._is_in_long and len(self._content) - self._end > self._limit:
            yield from self._flush()
            self._is_in_long = True
            self._drop_long(ends[:0])

    def finish(self, is_cut_off: bool) -> Iterator[TextRange]:
        """The last ranges of the file. ``is_cut_off``: its last document is incomplete."""
        if self._is_in_long:
            self._skip(len(self._content))
            return
        if len(self._content) > self._end:
            yield from self._cut(np.array([len(self._content)], np.int64), is_cut_off)
        yield from self._flush(is_cut_off)

    def _find(self, searched: int, stop: int) -> Ends:
        assert self._find_ends is not None
        is_line = self._offset > 0 and not self._is_in_long
        return self._find_ends(self._content, searched, stop, is_line)

    def _cut(self, ends: Ends, is_cut_off: bool = False) -> Iterator[TextRange]:
        """Add the documents that end at ``ends``. One that is too long ends a range, wherever blocks end."""
        while ends.size:
            long = np.flatnonzero(np.diff(ends, prepend=self._end) > self._limit)
            count = int(long[0]) if long.size else ends.size
            self._add(ends[:count])
            offset = self._offset
            yield from self._complete_ranges(is_cut_off)
            ends = ends[count:]
            if ends.size:
                yield from self._flush()
                ends = self._drop_long(ends - (self._offset - offset))

    def _add(self, ends: Ends) -> None:
        if not ends.size:
            return
        starts = np.concatenate([[self._end], ends[:-1]])
        self._end = int(ends[-1])
        if self._find_ends is None:
            self._rows = np.concatenate([self._rows, ends])
        # Empty lines (one byte) and empty rows end no range: there may be very many.
        may_end = ends - starts > 1 if self._find_ends else ends > starts
        starts, ends = starts[may_end], ends[may_end]
        marked = ends[_ends_range(self._content, starts, ends, self._between)]
        self._marked = np.concatenate([self._marked, marked])

    def _complete_ranges(self, is_cut_off: bool) -> Iterator[TextRange]:
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
        """Remove the first ``stop`` bytes and ``rows`` rows, as a range."""
        row_ends = self._rows[:rows] if self._find_ends is None else None
        with memoryview(self._content) as view:
            content = bytes(view[:stop])
        is_cut_off = is_cut_off and stop == len(self._content)
        start, length = (self._offset, stop) if row_ends is None else (self._row, rows)
        self._row += rows
        self._rows = self._rows[rows:]
        self._drop(stop)
        return TextRange(self._file.path, self._file.kind, start, start + length, content, row_ends, is_cut_off)

    def _drop(self, count: int) -> None:
        del self._content[:count]
        self._offset += count
        self._searched -= count
        self._end = max(0, self._end - count)
        self._rows = self._rows - count
        self._marked = self._marked[np.searchsorted(self._marked, count, "right") :] - count

    def _drop_long(self, ends: Ends) -> Ends:
        """Drop the bytes of the first document, which is too long; ``ends`` without it, relative to the rest."""
        if ends.size:
            stop = int(ends[0])
            self._skip(stop)
            self._drop(stop)
            return ends[1:] - stop
        last = max(0, self._content.rfind(b"\n"), self._content.rfind(b"\r", 0, self._searched))
        keep = min(len(self._content) - min(last, self._searched), _LONGEST_BLANK_LINE)
        self._long_bytes += len(self._content) - keep
        self._drop(len(self._content) - keep)
        return ends

    def _skip(self, rest: int) -> None:
        place = self._row if self._find_ends is None else self._offset - self._long_bytes
        self._ledger.skipped.append(Skip(self._file.path, place, self._long_bytes + rest, "too_long"))
        self._row += 1
        self._is_in_long, self._long_bytes = False, 0


def range_bytes(target: int) -> tuple[int, int, int]:
    """The shortest range, the average bytes from there to its end, and the longest range.

    Ranges then have ``target`` bytes on average. One in ten is cut at the longest size: an insertion before such a cut
    moves it.
    """
    return target // 4, target - target // 4, target * 2


def _ends_range(content: bytearray, starts: Ends, ends: Ends, between: int) -> npt.NDArray[np.bool_]:
    """True for a document with probability length / between, the same wherever the document is.

    The hash covers the length and eight bytes spread over the document, and its first 32 bytes if it has as many: there
    numbers and titles distinguish similar documents. This takes about 200 ns for a document of any size.
    """
    lengths = ends - starts
    places = starts[:, None] + (lengths - 1)[:, None] * np.arange(8) // 7
    samples = np.frombuffer(content, np.uint8)[places].view(np.uint64)[:, 0]
    hashes = mix(samples ^ mix(lengths.astype(np.uint64)))
    words = np.ndarray(max(0, len(content) - 7), np.uint64, content, strides=(1,))  # one word begins at every byte
    long = np.flatnonzero(lengths >= _HEAD_BYTES)
    for offset in range(0, _HEAD_BYTES, 8):
        hashes[long] = mix(hashes[long] ^ words[starts[long] + offset])
    return np.asarray(hashes < np.minimum(lengths / between, 0.999) * 2.0**64)


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finalizer of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014): every output bit depends on all input bits."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
