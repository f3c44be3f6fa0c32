"""The files of a chunk: a shard of token ids for each split, and the pieces of text that were skipped.

A shard is a memory-mapped Arrow IPC file with one record batch, one row a document:

    input_ids   large_list<uint16>   ids of the document, EOS last (uint32 above 65,536 ids)
    text_bytes  int64                UTF-8 bytes of its text
    position    int64                its place in the chunk, counted over both splits
    hash        uint64               the first 64 bits of the BLAKE3 digest of its text

The list's values are the flat token stream, its offsets the document boundaries. numpy views both without a copy. The
schema's metadata holds format version, tokenizer, the id of EOS, and counts. pyarrow, polars, duckdb and datasets open
the file as it is.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lmcore.errors import StoreError, could_not_read, owner_named
from lmcore.store.artifacts import FORMAT_VERSION, check_version

SPLITS = ("train", "validation")
QUARANTINE = "quarantine.arrow"
_QUARANTINE_SCHEMA = pa.schema(
    {
        "span": pa.int32(),
        "offset": pa.int64(),
        "length": pa.int64(),
        "reason": pa.string(),
        "content": pa.large_binary(),
    }
)
_NOT_MAPPED = "Memory mapping file failed"
"""pyarrow's message, without an errno, if no memory or mapping is left."""

Rows = npt.NDArray[np.bool_]
"""True for some of a shard's documents."""


def shard_path(chunk_folder: Path, split: str) -> Path:
    """The shard of one split of a chunk."""
    return chunk_folder / f"{split}.arrow"


def write_shard(
    path: Path,
    tokens: npt.NDArray[Any],
    lengths: npt.NDArray[np.int64],
    text_bytes: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
    hashes: npt.NDArray[np.uint64],
    *,
    tokenizer_id: str,
    eos_id: int,
) -> None:
    """Write documents to ``path``. ``tokens`` holds the ids of all documents with EOS, ``lengths`` their numbers."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    columns = {
        "input_ids": pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(tokens)),
        "text_bytes": pa.array(text_bytes, pa.int64()),
        "position": pa.array(positions, pa.int64()),
        "hash": pa.array(hashes, pa.uint64()),
    }
    metadata = {
        "format_version": str(FORMAT_VERSION),
        "tokenizer_id": tokenizer_id,
        "eos_id": str(eos_id),
        "documents": str(len(lengths)),
        "tokens": str(len(tokens)),
    }
    _write(path, pa.record_batch(columns).replace_schema_metadata(metadata))


def write_quarantine(chunk_folder: Path, pieces: list[dict[str, Any]]) -> None:
    """Write skipped pieces: number of the text range, offset, length, reason, content (only the head if too long)."""
    _write(chunk_folder / QUARANTINE, pa.RecordBatch.from_pylist(pieces, schema=_QUARANTINE_SCHEMA))


def read_quarantine(chunk_folder: Path) -> list[dict[str, Any]]:
    """The rows that ``write_quarantine`` wrote. Raises StoreError if the file is missing or damaged."""
    with _damage_named(chunk_folder / QUARANTINE):
        pieces: list[dict[str, Any]] = _read(chunk_folder / QUARANTINE).to_pylist()
        return pieces


def _write(path: Path, batch: Any) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def _read(path: Path) -> Any:
    batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
    batch.validate()  # a length beyond the file's end would crash whoever reads up to it
    return batch


def blanked(
    tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], rows: Rows
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Ids and lengths in which only the EOS of the given documents stays, so that all rows keep their numbers."""
    is_kept = np.repeat(~rows, lengths)
    is_kept[np.cumsum(lengths) - 1] = True
    return tokens[is_kept], np.where(rows, 1, lengths)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow says about a missing or damaged file into a StoreError; other errors stay as they are."""
    try:
        with owner_named(path):
            yield
    except FileNotFoundError:
        raise StoreError(f"shard {path} is missing: run the pipeline again to make it") from None
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        if could_not_read(error):
            raise
        if _NOT_MAPPED in str(error):
            raise OSError(errno.ENOMEM, str(error), str(path)) from None
        raise StoreError(f"shard {path} is damaged: {error}") from error


class Shard:
    """One open shard. The arrays are views of the file: nothing is read before it is used.

    Raises StoreError when the file is missing, no shard, of a newer format, or of another tokenizer.
    """

    def __init__(self, path: Path, tokenizer_id: str | None = None) -> None:
        self.path = path
        with _damage_named(path):
            batch = _read(path)
            self.metadata = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
            check_version({"format_version": int(self.metadata["format_version"])}, path)
            made_with, ids = self.metadata["tokenizer_id"], batch.column("input_ids")
            if tokenizer_id not in (None, made_with):
                raise StoreError(f"shard {path} was made with tokenizer {made_with}, wanted is {tokenizer_id}")
            if ids.type not in (pa.large_list(pa.uint16()), pa.large_list(pa.uint32())):
                raise pa.ArrowInvalid(f"input_ids is {ids.type}")
            self.tokens: npt.NDArray[Any] = ids.values.to_numpy(zero_copy_only=True)
            self.offsets: npt.NDArray[np.int64] = ids.offsets.to_numpy(zero_copy_only=True)
            self.positions: npt.NDArray[np.int64] = batch.column("position").to_numpy()
            self.text_bytes: npt.NDArray[np.int64] = batch.column("text_bytes").to_numpy()
            self.hashes: npt.NDArray[np.uint64] = batch.column("hash").to_numpy()

    def __len__(self) -> int:
        """Documents."""
        return len(self.offsets) - 1

    @classmethod
    def of_chunk(cls, store: Path, entry: dict[str, Any], split: str, tokenizer_id: str | None = None) -> "Shard":
        """The shard of one split of a chunk, which an entry of a dataset's manifest names."""
        return cls(shard_path(store / "shards" / entry["key"], split), tokenizer_id)

    def all_but(self, dropped: list[int]) -> Rows:
        """The documents that are left without those of the given numbers."""
        rows = np.ones(len(self), np.bool_)
        rows[dropped] = False
        return rows

    def ids(self, row: int) -> npt.NDArray[Any]:
        """The ids of a document, EOS last."""
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def figures(self, rows: Rows) -> dict[str, int]:
        """What a manifest says of some documents."""
        text_bytes = self.text_bytes[rows]
        return {
            "documents": len(text_bytes),
            "tokens": int(np.diff(self.offsets)[rows].sum()),
            "text_bytes": int(text_bytes.sum()),
            "longest_bytes": int(text_bytes.max(initial=0)),
        }
