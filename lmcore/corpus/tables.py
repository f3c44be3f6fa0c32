"""Read the text column of Parquet and Arrow files, in parts of about a megabyte.

Offsets and indices are checked before they are followed. Memory holds the rows of a part (more if rows become a
thousand times longer at once), and the units that the formats pack as one: a page of Parquet, the text column of a
compressed Arrow record batch.
"""

import logging
import os
from collections.abc import Iterator
from mmap import ACCESS_READ, MADV_DONTNEED, mmap
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmcore.corpus.compression import is_bomb
from lmcore.corpus.ledger import name_list
from lmcore.corpus.range_cutter import ROW_BYTES
from lmcore.corpus.scan import SourceFile
from lmcore.settings.config import CorpusConfig

_READ_BYTES = 2**20
_FIRST_ROWS, _MOST_ROWS = 16, 1024

_log = logging.getLogger(__name__)

Lengths = npt.NDArray[np.int64]

_BINARY = {
    pa.string(): pa.binary(),
    pa.large_string(): pa.large_binary(),
    pa.string_view(): pa.binary_view(),
}


class TableError(Exception):
    """Why the text of a table cannot be read: a reason for the ledger, and what was found instead."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


def table_texts(stream: IO[bytes], file: SourceFile, config: CorpusConfig) -> Iterator[tuple[bytes, Lengths]]:
    """About a megabyte of joined texts at a time, and the length of each row's text (0 for null).

    Raises TableError, or the error of pyarrow for a damaged file, after all text before the damage.
    """
    parts = _parquet_texts(stream, file, config) if file.kind == "parquet" else _arrow_texts(stream, file, config)
    texts: list[memoryview] = []
    lengths: list[Lengths] = []
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
            raise TableError("decompression_bomb")
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
        raise TableError("ambiguous_text_field")
    kind = pa.struct(list(schema))
    for name in path:
        if not pa.types.is_struct(kind) or kind.get_field_index(name) < 0:
            raise TableError("no_text_field", name_list(schema.names))
        kind = kind.field(name).type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if kind not in (*_BINARY, *_BINARY.values()):
        _log.warning("%s: column %s is %s, not text", file, field, kind)
        raise TableError("text_is_no_string")
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
