"""Read the text ranges of a file, whatever its format: text, JSON lines, compressed files, tables.

One reader supplies many encoders, so nothing is parsed here. Memory is bounded by a few ``chunk_bytes`` for any text;
tables.py says how much a table needs in addition.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np
import pyarrow as pa
from blake3 import blake3

from lmcore.corpus.compression import Unpacked, is_bomb
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.range_cutter import ROW_BYTES, RangeCutter
from lmcore.corpus.remote import is_url, open_stored
from lmcore.corpus.scan import SourceFile
from lmcore.corpus.tables import TableError, table_texts
from lmcore.corpus.text_range import TextRange
from lmcore.errors import FileChangedError, no_space_named
from lmcore.settings.config import CorpusConfig
from lmcore.store.files import DIGEST_BYTES

_READ_BYTES = 2**20
_log = logging.getLogger(__name__)


def read_ranges(file: SourceFile, config: CorpusConfig, ledger: Ledger) -> Iterator[TextRange]:
    """The text ranges of one file, in order. ``ledger`` gets the size of the file and the bytes outside of ranges.

    Raises FileChangedError: before the first range if the file cannot be read, after the last one if it is not the
    file that was scanned.
    """
    digest = blake3()
    stored = _stored_blocks(file, ledger, digest)
    if not file.is_table:
        yield from _read_text(file, config, ledger, stored)
    elif is_url(file.path):
        with no_space_named(Path(gettempdir())), TemporaryFile() as copy:  # one download, and seekable
            copy.writelines(stored)
            copy.seek(0)
            yield from _read_table(file, copy, config, ledger)
    else:
        with _opened(file) as stream:
            yield from _read_table(file, stream, config, ledger)
        for _ in stored:
            pass
    if digest.hexdigest(DIGEST_BYTES) != file.digest:
        raise FileChangedError(file.path, "changed_while_read")


def _stored_blocks(file: SourceFile, ledger: Ledger, digest: Any) -> Iterator[bytes]:
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


def _read_text(file: SourceFile, config: CorpusConfig, ledger: Ledger, stored: Iterator[bytes]) -> Iterator[TextRange]:
    unpacked = Unpacked(stored, file.compression, config.max_expansion) if file.compression else None
    cutter = RangeCutter(file, config, ledger)
    for block in unpacked or stored:
        ledger.source_bytes += len(block)
        yield from cutter.feed(block)
    yield from cutter.finish(unpacked is not None and unpacked.is_cut_off)
    if unpacked is not None:
        ledger.undecodable_stored_bytes += unpacked.undecodable_bytes
        if unpacked.problem:
            lost = 0 if ledger.source_bytes else file.stored_bytes
            ledger.skipped.append(Skip(file.path, ledger.source_bytes, 0, unpacked.problem, stored=lost))


def _read_table(file: SourceFile, stream: IO[bytes], config: CorpusConfig, ledger: Ledger) -> Iterator[TextRange]:
    cutter = RangeCutter(file, config, ledger)
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
            raise  # the disk or a limit of the system, not damage
        _log.warning("%s cannot be read from here on: %s", file.path, error)
        problem = "damaged_table"
        ledger.undecodable_stored_bytes += file.stored_bytes
    yield from cutter.finish(False)
    if problem or not rows:
        lost = 0 if rows else file.stored_bytes
        ledger.skipped.append(Skip(file.path, 0, 0, problem or "empty_table", stored=lost, detail=detail))
