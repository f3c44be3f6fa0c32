"""Unpack compressed files as streams: gz, bz2, xz and zst, with one member or several.

Text comes in pieces of bounded size, whatever the ratio. Data that cannot be unpacked (a file cut short, damage,
garbage after the end, a ratio above ``max_expansion``) ends the stream. It is named in ``problem`` and counted in
stored bytes; no exception is raised. The file objects of the standard library do not give these counts.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from backports import zstd
from isal import igzip_lib

_TEXT_BYTES = _STORED_BYTES = 2**16
_HARMLESS_BYTES = 2**28
"""A stream that gave less text than this is not a bomb."""

_LARGEST_WINDOW: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 31}
"""The window of ``zstd --long=31``. Memory grows with the text in the window, so only such files need it."""

_ERRORS: Any = (igzip_lib.IsalError, zlib.error, OSError, EOFError, lzma.LZMAError, zstd.ZstdError)

# suffix -> (decompressor, first bytes that another member may have)
_FORMATS: dict[str, tuple[Callable[[], Any], bytes]] = {
    "gz": (lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), b"\x1f"),
    "bz2": (bz2.BZ2Decompressor, b"B"),
    "xz": (lzma.LZMADecompressor, b"\xfd"),
    "zst": (
        lambda: zstd.ZstdDecompressor(options=_LARGEST_WINDOW),
        b"\x28\x50\x51\x52\x53\x54\x55\x56\x57\x58\x59\x5a\x5b\x5c\x5d\x5e\x5f",
    ),
}


def is_bomb(text_bytes: int, stored_bytes: int, max_expansion: float) -> bool:
    """True if the text is far larger than the stored file."""
    return text_bytes > max(_HARMLESS_BYTES, max_expansion * stored_bytes)


class Unpacked:
    """Iterates over the unpacked bytes of ``stored``, the blocks of a compressed file.

    Afterwards ``problem`` names what ended it early; it is empty for a complete file. ``undecodable_bytes`` counts the
    stored bytes that gave no text (exact to about 64 kB).
    """

    def __init__(self, stored: Iterator[bytes], suffix: str, max_expansion: float) -> None:
        self._stored = _small(stored)
        self._new_member, self._magic = _FORMATS[suffix]
        self._max_expansion = max_expansion
        self.problem = ""
        self.undecodable_bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        member, is_garbage_possible = self._new_member(), False
        read = given = idle = 0  # idle: stored bytes since the last text
        for block in self._stored:
            read += len(block)
            given_before, rest = given, block
            while rest or not (member.needs_input or member.eof):
                if member.eof:
                    rest = rest.lstrip(b"\0")  # padding, as in tape archives
                    if not rest:
                        break
                    if rest[0] not in self._magic:
                        return self._give_up("garbage_after_archive", len(rest))
                    member, is_garbage_possible = self._new_member(), True
                    given_before, block = given, rest
                try:
                    text = member.decompress(rest, _TEXT_BYTES)
                except _ERRORS:
                    problem = "garbage_after_archive" if is_garbage_possible else "damaged_archive"
                    return self._give_up(problem, idle + len(rest or block))
                rest = member.unused_data if member.eof else b""
                if text:
                    is_garbage_possible = False
                    given += len(text)
                    yield text
                if is_bomb(given, read, self._max_expansion):
                    return self._give_up("decompression_bomb", 0)
            idle = 0 if member.eof or given > given_before else idle + len(block)
        if not member.eof:
            self._give_up("truncated_archive", idle)
        return None

    def _give_up(self, problem: str, undecodable: int) -> None:
        """Read the remaining blocks without unpacking them."""
        self.problem = problem
        self.undecodable_bytes = undecodable + sum(map(len, self._stored))


def _small(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Smaller blocks, so that the count of undecodable bytes is nearly exact."""
    return (block[at : at + _STORED_BYTES] for block in blocks for at in range(0, len(block), _STORED_BYTES))
