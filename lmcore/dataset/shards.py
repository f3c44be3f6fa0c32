"""The shard format: token ids of many documents in one memory-mapped Arrow IPC file.

A file holds one record batch, one row a document:

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
_NOT_MAPPED = "Memory mapping file failed"
"""pyarrow's message, without an errno, if no memory or mapping is left."""


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
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
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
    batch = pa.record_batch(columns).replace_schema_metadata(metadata)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def blanked(
    tokens: npt.NDArray[Any], lengths: npt.NDArray[np.int64], rows: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """Ids and lengths in which only the EOS of the given documents stays.

    Their rows keep their places, because manifests list dropped rows by number.
    """
    is_kept = np.repeat(~rows, lengths)
    is_kept[np.cumsum(lengths) - 1] = True
    return tokens[is_kept], np.where(rows, 1, lengths)


@contextmanager
def damage_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow says about a file that is missing or damaged into a ``StoreError`` that names it.

    What could not be read is raised as it is.
    """
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
        with damage_named(path):
            batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
            batch.validate()  # a length beyond the file's end would crash whoever reads up to it
            metadata = batch.schema.metadata or {}
            self.metadata = {key.decode(): value.decode() for key, value in metadata.items()}
        self.path = path
        version = self.metadata.get("format_version", "")
        check_version({"format_version": int(version) if version.isdecimal() else None}, path)
        made_with = self.metadata.get("tokenizer_id")
        if tokenizer_id is not None and made_with != tokenizer_id:
            raise StoreError(f"shard {path} was made with tokenizer {made_with}, wanted is {tokenizer_id}")
        with damage_named(path):
            column = batch.column("input_ids")
            if column.type not in (pa.large_list(pa.uint16()), pa.large_list(pa.uint32())):
                raise pa.ArrowInvalid(f"input_ids is {column.type}")
            self.tokens: npt.NDArray[Any] = column.values.to_numpy(zero_copy_only=True)
            self.offsets: npt.NDArray[np.int64] = column.offsets.to_numpy(zero_copy_only=True)
            self.positions: npt.NDArray[np.int64] = batch.column("position").to_numpy()
            self.text_bytes: npt.NDArray[np.int64] = batch.column("text_bytes").to_numpy()
            self.hashes: npt.NDArray[np.uint64] = batch.column("hash").to_numpy()

    def __len__(self) -> int:
        """Documents."""
        return len(self.offsets) - 1
