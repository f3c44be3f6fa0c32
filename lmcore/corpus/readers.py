"""Read the files of a corpus, whatever their format: text, JSON lines, compressed files, tables.

One reader supplies many encoders, so nothing is parsed in ``read_ranges``. Memory is bounded by a few ``chunk_bytes``
for any text. Of a table, memory holds about a megabyte of rows (more if rows become a thousand times longer at once),
and the units that the formats pack as one: a page of Parquet, the text column of a compressed Arrow record batch. The
offsets and indices of a table are checked before they are followed.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from blake3 import blake3

from lmcore.corpus.compression import Unpacked, is_bomb
from lmcore.corpus.documents import Document, parse
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.ledger import Ledger, Skip, name_list
from lmcore.corpus.range_cutter import RangeCutter
from lmcore.corpus.remote import open_stored
from lmcore.corpus.text_range import ROW_BYTES, TABLES, TextRange
from lmcore.errors import FileChangedError, no_space_named
from lmcore.settings.config import CorpusConfig
from lmcore.settings.urls import is_url
from lmcore.store.files import DIGEST_BYTES

_READ_BYTES = 2**20
_FIRST_ROWS, _MOST_ROWS = 16, 1024
_CUT_OFF = ("truncated_archive", "damaged_archive", "decompression_bomb")
"""Problems of an archive that leave its last document incomplete."""
_BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary(), pa.string_view(): pa.binary_view()}
_Lengths = npt.NDArray[np.int64]
_log = logging.getLogger(__name__)


def read_documents(file: SourceFile, config: CorpusConfig, ledger: Ledger) -> Iterator[Document]:
    """Stream the documents of one file and count each of its bytes in ``ledger``.

    Raises FileChangedError if the file cannot be read or is not the one that was scanned.
    """
    for text_range in read_ranges(file, config, ledger):
        counts = Ledger()
        yield from parse(text_range, config, counts)
        counts.source_bytes = 0  # the reader counted them
        ledger.add(counts)


def read_ranges(file: SourceFile, config: CorpusConfig, ledger: Ledger) -> Iterator[TextRange]:
    """The text ranges of one file, in order. ``ledger`` gets the size of the file and the bytes outside of ranges.

    Raises FileChangedError: before the first range if the file cannot be read, after the last one if it is not the
    file that was scanned.
    """
    digest = blake3()
    stored = _stored_blocks(file, ledger, digest)
    if file.kind not in TABLES:
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
    cutter = RangeCutter(file.path, file.kind, config, ledger)
    for block in unpacked or stored:
        ledger.source_bytes += len(block)
        yield from cutter.feed(block)
    yield from cutter.finish(unpacked is not None and unpacked.problem in _CUT_OFF)
    if unpacked is not None:
        ledger.undecodable_stored_bytes += unpacked.undecodable_bytes
        if unpacked.problem:
            lost = 0 if ledger.source_bytes else file.stored_bytes
            ledger.skipped.append(Skip(file.path, ledger.source_bytes, 0, unpacked.problem, stored=lost))


def _read_table(file: SourceFile, stream: IO[bytes], config: CorpusConfig, ledger: Ledger) -> Iterator[TextRange]:
    cutter = RangeCutter(file.path, file.kind, config, ledger)
    problem, detail, rows = "", "", 0
    try:
        for content, lengths in _table_texts(stream, file, config):
            ledger.source_bytes += len(content)
            rows += len(lengths)
            yield from cutter.feed(content, np.cumsum(lengths))
            if is_bomb(ledger.source_bytes + rows * ROW_BYTES, file.stored_bytes, config.max_expansion):
                raise _TableError("decompression_bomb")
    except _TableError as error:
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


# --- tables ---


class _TableError(Exception):
    """Why the text of a table cannot be read: a reason for the ledger, and what was found instead."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def _table_texts(stream: IO[bytes], file: SourceFile, config: CorpusConfig) -> Iterator[tuple[bytes, _Lengths]]:
    """About a megabyte of joined texts at a time, and the length of each row's text (0 for null).

    Raises _TableError, or the error of pyarrow for a damaged file, after all text before the damage.
    """
    parts = _parquet_texts(stream, file, config) if file.kind == "parquet" else _arrow_texts(stream, file, config)
    texts: list[memoryview] = []
    lengths: list[_Lengths] = []
    size, problem = 0, None
    try:
        for part in parts:
            _, offsets_buffer, text = part.buffers()
            offsets = np.frombuffer(offsets_buffer, np.int64)[part.offset : part.offset + len(part) + 1]
            texts.append(memoryview(text)[offsets[0] : offsets[-1]])
            lengths.append(np.diff(offsets))
            size += len(texts[-1]) + len(part) * ROW_BYTES
            if size >= _READ_BYTES:
                yield b"".join(texts), np.concatenate(lengths)
                texts, lengths, size = [], [], 0
    except Exception as error:
        problem = error
    if lengths:
        yield b"".join(texts), np.concatenate(lengths)
    if problem:
        raise problem


def _parquet_texts(stream: Any, file: SourceFile, config: CorpusConfig) -> Iterator[Any]:
    table = pq.ParquetFile(stream, buffer_size=_READ_BYTES)
    path = _text_path(table.schema_arrow, config.text_field, file.path)
    rows = _FIRST_ROWS
    for number in range(table.num_row_groups):
        group = table.metadata.row_group(number)
        columns = map(group.column, range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema == config.text_field)
        if is_bomb(size, file.stored_bytes, config.max_expansion):
            raise _TableError("decompression_bomb")
        for batch in table.iter_batches(rows, row_groups=[number], columns=[config.text_field]):
            part = _large(_text(batch, path))
            yield part
            rows = _next_rows(part)
            table.reader.set_batch_size(rows)  # for the next batch


def _arrow_texts(stream: IO[bytes], file: SourceFile, config: CorpusConfig) -> Iterator[Any]:
    """The texts of a file or a stream. It is mapped, because a record batch may be as large as the file."""
    mapped = mmap(stream.fileno(), 0, access=ACCESS_READ)
    is_file = mapped[:6] == b"ARROW1"
    reader = (pa.ipc.open_file if is_file else pa.ipc.open_stream)(pa.py_buffer(mapped))
    path = _text_path(reader.schema, config.text_field, file.path)
    batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
    rows, passed = _FIRST_ROWS, 0
    for batch in batches:
        column, start = _text(batch, path), 0
        while start < len(column):
            if os.fstat(stream.fileno()).st_size < len(mapped):  # reading beyond the end would end the process
                raise OSError("it was cut short while it was read")
            part = _large(column.slice(start, rows))
            yield part
            start += len(part)
            rows = _next_rows(part)
            passed += part.nbytes
            if passed > config.chunk_bytes:
                mapped.madvise(MADV_DONTNEED)
                passed = 0


def _text_path(schema: Any, field: str, file: str) -> list[str]:
    """The column and the struct members that lead to the text. The name of a column may contain dots itself."""
    path = [field] if field in schema.names else field.split(".")
    if schema.names.count(path[0]) > 1:
        raise _TableError("ambiguous_text_field")
    kind = pa.struct(list(schema))
    for name in path:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            raise _TableError("no_text_field", name_list(schema.names))
        kind = kind.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in (*_BINARY, *_BINARY.values()):
        _log.warning("%s: column %s is %s, not text", file, field, kind)
        raise _TableError("text_is_no_string")
    return path


def _text(batch: Any, path: list[str]) -> Any:
    column = batch.column(path[0])
    column.validate()
    return _binary(pc.struct_field(column, path[1:]) if path[1:] else column)


def _large(part: Any) -> Any:
    if pa.types.is_dictionary(part.type):
        part = part.dictionary_decode()
    return part.cast(pa.large_binary()).fill_null(b"")


def _next_rows(part: Any) -> int:
    """About as many rows as a megabyte holds if they are like the last ones; at most twice as many."""
    return int(max(1, min(2 * len(part), _MOST_ROWS, _READ_BYTES * len(part) // max(1, part.nbytes))))


def _binary(column: Any) -> Any:
    """The column as checked binary.

    As binary, text that is not UTF-8 costs a row and not the file. Following an unchecked damaged offset would end
    the process.
    """
    if pa.types.is_dictionary(column.type):
        return pa.DictionaryArray.from_arrays(column.indices, _binary(column.dictionary))
    column = column.view(_BINARY.get(column.type, column.type))
    column.validate(full=True)
    return column
