"""Cut the documents of a file into text ranges of about ``chunk_bytes``.

A range ends after a document whose hash meets a threshold, once the range is long enough. The documents alone decide,
so an insertion or deletion changes the ranges that it touches and no others. A document longer than
``max_document_bytes`` is read past and is in no range.
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.text_range import ROW_BYTES, TABLES, Ends, TextRange, unit_of
from lmcore.settings.config import CorpusConfig

CUT_VERSION = 3
"""Version of the rule by which ranges end. A chunk index of another version is not used."""
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


_ENDS: dict[str, Callable[[bytearray, int, int, bool], Ends]] = {
    "line": _line_ends,
    "paragraph": _paragraph_ends,
    "file": lambda content, searched, stop, is_line: np.empty(0, np.int64),
    "row": lambda content, searched, stop, is_line: np.empty(0, np.int64),
}


class RangeCutter:
    """Collects the blocks of a file and yields text ranges as soon as they are complete.

    Ends are counted from the start of the file; of a table, in the bytes of its texts.
    """

    def __init__(self, path: str, kind: str, config: CorpusConfig, ledger: Ledger) -> None:
        self._path, self._kind, self._ledger = path, kind, ledger
        self._is_table = kind in TABLES
        self._find_ends = _ENDS[unit_of(kind, config)]
        self._shortest, self._between, self._longest = range_bytes(config.chunk_bytes)
        self._limit = config.max_document_bytes + len(b"\r\n") + _LONGEST_BLANK_LINE
        self._content = bytearray()
        self._offset = self._row = 0
        """Place of the content's first byte and of its first row."""
        self._searched = self._end = 0
        """Up to where ends were searched, and the end of the last complete document."""
        self._ends = [np.empty(0, np.int64)]
        """Ends of the complete documents."""
        self._marked = np.empty(0, np.int64)
        """Those that may end a range."""
        self._is_in_long = False
        """The content begins inside a document that is too long."""
        self._long_bytes = 0
        """Bytes of that document that are dropped already."""

    def feed(self, block: bytes, row_ends: Ends | None = None) -> Iterator[TextRange]:
        """The ranges that the next block completes. ``row_ends``: where rows of a table end in the block."""
        self._content += block
        stop = self._offset + len(self._content)
        ends = self._new_ends() if row_ends is None else row_ends + (stop - len(block))
        if self._is_in_long:
            ends = self._drop_long(ends)
        yield from self._cut(ends)
        if self._is_table and sum(map(len, self._ends)) > self._longest // ROW_BYTES:  # rows with next to no text
            yield from self._flush()
        if not self._is_in_long and stop - self._end > self._limit:
            yield from self._flush()
            self._is_in_long = True
            self._drop_long(ends[:0])

    def finish(self, is_cut_off: bool) -> Iterator[TextRange]:
        """The last ranges of the file. ``is_cut_off``: its last document is incomplete."""
        if self._is_in_long:
            self._skip(len(self._content))
            return
        stop = self._offset + len(self._content)
        if stop > self._end:
            yield from self._cut(np.array([stop], np.int64), is_cut_off)
        yield from self._flush(is_cut_off)

    def _new_ends(self) -> Ends:
        searched, stop = self._searched - self._offset, _decided(self._content)
        self._searched = self._offset + stop
        is_line = self._offset > 0 and not self._is_in_long
        return self._find_ends(self._content, searched, stop, is_line) + self._offset

    def _cut(self, ends: Ends, is_cut_off: bool = False) -> Iterator[TextRange]:
        """Add the documents that end at ``ends``. One that is too long ends a range, wherever blocks end."""
        while ends.size:
            long = np.flatnonzero(np.diff(ends, prepend=self._end) > self._limit)
            count = int(long[0]) if long.size else ends.size
            self._add(ends[:count])
            yield from self._complete_ranges(is_cut_off)
            ends = ends[count:]
            if ends.size:
                yield from self._flush()
                ends = self._drop_long(ends)

    def _add(self, ends: Ends) -> None:
        if not ends.size:
            return
        starts = np.concatenate([[self._end], ends[:-1]])
        self._ends.append(ends)
        self._end = int(ends[-1])
        # Empty lines (one byte) and empty rows end no range: there may be very many.
        may_end = ends - starts > (0 if self._is_table else 1)
        starts, ends = starts[may_end], ends[may_end]
        is_marked = _ends_range(self._content, starts - self._offset, ends - self._offset, self._between)
        self._marked = np.concatenate([self._marked, ends[is_marked]])

    def _complete_ranges(self, is_cut_off: bool) -> Iterator[TextRange]:
        while True:
            stops = self._marked[np.searchsorted(self._marked, self._offset + self._shortest) :][:1].tolist()
            longest = self._offset + self._longest
            if not stops and self._end < longest:
                return
            ends = np.concatenate(self._ends)
            stops += ends[np.searchsorted(ends, longest) :][:1].tolist()
            yield self._take(ends, int(np.searchsorted(ends, min(stops))) + 1, is_cut_off)

    def _flush(self, is_cut_off: bool = False) -> Iterator[TextRange]:
        ends = np.concatenate(self._ends)
        if ends.size:
            yield self._take(ends, ends.size, is_cut_off)

    def _take(self, ends: Ends, count: int, is_cut_off: bool) -> TextRange:
        """Remove the first ``count`` documents, as a range."""
        stop, own = int(ends[count - 1]), ends[:count] - self._offset
        with memoryview(self._content) as view:
            content = bytes(view[: stop - self._offset])
        is_cut_off = is_cut_off and len(content) == len(self._content)
        if self._is_table:
            place = (self._row, self._row + count)
        else:
            place = (self._offset, stop)
            is_filled = np.diff(own, prepend=0) > 1  # an empty line belongs to what follows: there may be very many
            own = np.append(own[:-1][is_filled[:-1]], own[-1])
        self._row += count
        self._ends = [ends[count:]]
        self._drop(stop)
        return TextRange(self._path, self._kind, *place, content, own, is_cut_off)

    def _drop(self, stop: int) -> None:
        del self._content[: stop - self._offset]
        self._offset, self._end = stop, max(stop, self._end)
        self._marked = self._marked[np.searchsorted(self._marked, stop, "right") :]

    def _drop_long(self, ends: Ends) -> Ends:
        """Drop the bytes of the first document, which is too long; ``ends`` without it."""
        if ends.size:
            stop = int(ends[0])
            self._skip(stop - self._offset)
            self._drop(stop)
            return ends[1:]
        searched, length = self._searched - self._offset, len(self._content)
        last = max(0, self._content.rfind(b"\n"), self._content.rfind(b"\r", 0, searched))
        dropped = length - min(length - min(last, searched), _LONGEST_BLANK_LINE)
        self._long_bytes += dropped
        self._drop(self._offset + dropped)
        return ends

    def _skip(self, rest: int) -> None:
        place = self._row if self._is_table else self._offset - self._long_bytes
        self._ledger.skipped.append(Skip(self._path, place, self._long_bytes + rest, "too_long"))
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
