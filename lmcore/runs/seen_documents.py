"""The documents that weights were trained on, as one file beside them: in a run, an export and a version.

    seen_documents.safetensors   train, validation: uint64, the sorted hashes of documents

A run's file lists the documents of its dataset and those of its initial model, so the datasets of earlier runs are not
needed. safetensors, because a list of millions is searched as one array. Weights of an older version of this program
have no file: it is built from the datasets that config.json or manifest.json names.
"""

from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lmcore.corpus.document_hashes import Hashes, current_dataset_id
from lmcore.dataset.filters import hashes
from lmcore.errors import StoreError, owner_named
from lmcore.runs.run import Run
from lmcore.store.artifacts import FORMAT_VERSION, MANIFEST, check_version, read_manifest
from lmcore.store.files import write_file

SEEN_DOCUMENTS = "seen_documents.safetensors"


class SeenDocuments(NamedTuple):
    """Hashes of documents, sorted, each once."""

    train: Hashes
    validation: Hashes

    @classmethod
    def from_dataset(cls, dataset: Path) -> Self:
        """The documents of a dataset's folder. Raises StoreError when one of its shards is missing or damaged."""
        chunks, store = read_manifest(dataset)["chunks"], dataset.parents[1]
        return cls(*(np.unique(hashes(chunks, store, split)) for split in cls._fields))

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """What the file in a folder lists; None where there is none. Raises StoreError when it is damaged."""
        path = folder / SEEN_DOCUMENTS
        if not path.exists():
            return None
        try:
            with owner_named(path), safe_open(path, "numpy") as file:
                about, seen = file.metadata(), cls(*map(file.get_tensor, cls._fields))
            check_version({"format_version": int(about["format_version"])}, path)
            if about["checksum"] != seen._checksum():
                raise ValueError("its content changed")
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise StoreError(f"{path} is damaged: {error}. Begin the run again with --fresh") from error
        return seen

    def save(self, folder: Path) -> None:
        """Write the file into a folder."""
        about = {"format_version": str(FORMAT_VERSION), "checksum": self._checksum()}
        write_file(folder / SEEN_DOCUMENTS, save(self._asdict(), about))

    def joined(self, other: Self) -> Self:
        """What either lists."""
        return type(self)(*map(np.union1d, self, other))

    def _checksum(self) -> str:
        return blake3(b"".join(column.tobytes() for column in self)).hexdigest(16)


def seen_documents(folder: Path, store: Path) -> SeenDocuments:
    """What the weights of a run, a checkpoint, an export or a version have seen.

    Nothing for a model that was not made here, because its text is unknown. Raises StoreError when the weights were
    made here, the file is missing, and a dataset of the lineage is not whole in ``store``.
    """
    home = folder.absolute().parents[1] if (folder / "state.json").exists() else folder
    if (found := SeenDocuments.load(home)) is not None:
        return found
    seen = SeenDocuments(np.empty(0, np.uint64), np.empty(0, np.uint64))
    if (home / "checkpoints").is_dir():
        about = Run.open(home).record
    elif (home / MANIFEST).exists():
        about = read_manifest(home)
    else:
        return seen
    if "datasets" not in about:
        raise StoreError(f"{home} has no {SEEN_DOCUMENTS}: begin the run again with --fresh")
    for name in about["datasets"]:
        try:
            seen = seen.joined(SeenDocuments.from_dataset(store / "datasets" / current_dataset_id(store, name)))
        except StoreError as error:
            raise StoreError(f"dataset {name}, which its weights were trained on, is not whole: {error}") from error
    return seen
