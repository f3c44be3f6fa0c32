"""The documents that weights were trained on, as one file beside them: in a run, an export and a version.

    seen_documents.safetensors   train, validation: uint64, the sorted hashes of documents

A run's file lists the documents of its dataset and those that its initial model had seen, so the datasets of earlier
runs are not needed. Weights of an older version of this program have no such file. Their dataset ids are in config.json
or manifest.json, and the file is built from these when a run starts from them. Nothing here needs torch.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from lmcore.corpus.document_hashes import Hashes, current_dataset_id
from lmcore.dataset.filters import hashes
from lmcore.errors import StoreError, owner_named
from lmcore.runs.run_record import read_record
from lmcore.store.artifacts import FORMAT_VERSION, MANIFEST, check_version, read_manifest
from lmcore.store.files import write_file

SEEN_DOCUMENTS = "seen_documents.safetensors"


class SeenDocuments(NamedTuple):
    """Hashes of documents, sorted, each once."""

    train: Hashes
    validation: Hashes

    @classmethod
    def from_dataset(cls, dataset: Path) -> "SeenDocuments":
        """The documents of a dataset's folder. Raises StoreError when one of its shards is missing or damaged."""
        chunks, store = read_manifest(dataset)["chunks"], dataset.parents[1]
        return cls(*(np.unique(hashes(chunks, store, split)) for split in cls._fields))

    @classmethod
    def load(cls, folder: Path) -> "SeenDocuments | None":
        """What the file in a folder lists; None where there is none. Raises StoreError when it is damaged."""
        path = folder / SEEN_DOCUMENTS
        if not path.exists():
            return None
        try:
            with owner_named(path), safe_open(path, "numpy") as file:
                about, seen = file.metadata() or {}, cls(*map(file.get_tensor, cls._fields))
            check_version({"format_version": int(about["format_version"])}, path)
        except (SafetensorError, ValueError, LookupError) as error:
            raise StoreError(f"{path} is damaged: {error}. Begin the run again with --fresh") from error
        if about.get("checksum") != seen._checksum():
            raise StoreError(f"{path} is damaged: its content changed. Begin the run again with --fresh")
        return seen

    def save(self, folder: Path) -> None:
        """Write the file into a folder."""
        about = {"format_version": str(FORMAT_VERSION), "checksum": self._checksum()}
        write_file(folder / SEEN_DOCUMENTS, save(self._asdict(), about))

    def joined(self, other: "SeenDocuments") -> "SeenDocuments":
        """What either lists."""
        return SeenDocuments(*(np.union1d(mine, theirs) for mine, theirs in zip(self, other, strict=True)))

    def _checksum(self) -> str:
        digest = blake3()
        for column in self:
            digest.update(column.tobytes())
        return digest.hexdigest(16)


def seen_documents(folder: Path, store: Path) -> SeenDocuments:
    """What the weights of a run, a checkpoint, an export or a version have seen.

    Of a model that was not made here nothing is known, so nothing is listed. Raises StoreError when the weights were
    made here and it cannot be known: the file is missing, and a dataset of the lineage is not whole in ``store``.
    """
    home = folder.absolute().parents[1] if (folder / "state.json").exists() else folder
    found = SeenDocuments.load(home)
    return found if found is not None else _from_lineage(home, store)


def _from_lineage(home: Path, store: Path) -> SeenDocuments:
    seen = SeenDocuments(np.empty(0, np.uint64), np.empty(0, np.uint64))
    record = _record(home)
    if "datasets" not in record:
        if record:
            raise StoreError(f"{home} has no {SEEN_DOCUMENTS}: begin the run again with --fresh")
        return seen
    for name in record["datasets"]:
        try:
            seen = seen.joined(SeenDocuments.from_dataset(store / "datasets" / current_dataset_id(store, name)))
        except StoreError as error:
            raise StoreError(f"dataset {name}, which its weights were trained on, is not whole: {error}") from error
    return seen


def _record(home: Path) -> dict[str, Any]:
    """What says how weights were made; empty for a folder that was not made here."""
    if (home / "checkpoints").is_dir():
        return read_record(home)
    return read_manifest(home) if (home / MANIFEST).exists() else {}
