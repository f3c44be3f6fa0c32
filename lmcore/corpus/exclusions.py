"""Documents to leave out: those that the settings name, and those that the store has forgotten.

``corpus.exclude_documents`` leaves documents out of one dataset. ``forgotten.jsonl`` in the store is permanent: its
documents are in no dataset and no shard that is written in the store (upkeep/forget.py). It holds hashes and names but
no text, one event a line.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.errors import ConfigError
from lmcore.settings.config import CorpusConfig
from lmcore.store.allowed_paths import check_allowed
from lmcore.store.json_files import read_lines

FORGOTTEN = "forgotten.jsonl"
HASH = "[0-9a-fA-F]{16}"


def excluded_hashes(config: CorpusConfig) -> list[int]:
    """The hashes of corpus.exclude_documents, sorted. Raises ConfigError for an entry that is neither hash nor file."""
    found: set[int] = set()
    for entry in config.exclude_documents:
        found |= {int(entry, 16)} if re.fullmatch(HASH, entry) else _hashes_of_file(entry, config)
    return sorted(found)


def _hashes_of_file(entry: str, config: CorpusConfig) -> set[int]:
    """The hashes in a file that begins with a hash; else the hashes of its documents, cut as the corpus is."""
    from lmcore.corpus.document_query import DocumentQuery  # imports this module

    check_allowed(entry, "corpus.exclude_documents")
    try:
        lines = Path(entry).expanduser().read_bytes().decode("utf-8-sig", errors="replace").split()
    except OSError as error:
        raise ConfigError(
            f"corpus.exclude_documents: {entry} is neither a document hash (16 hexadecimal digits) nor a file of "
            f"hashes or documents: {error}"
        ) from None
    if not lines or not re.fullmatch(HASH, lines[0]):
        return set(DocumentQuery.parse(entry).cut(config.model_dump()).ways[0].tolist())
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(HASH, line):
            raise ConfigError(
                f"corpus.exclude_documents: word {number} of {entry} is not a hash of 16 hexadecimal digits, as the "
                "first word is: give one hash a line"
            )
    return {int(line, 16) for line in lines}


def forgotten_events(store: Path) -> list[dict[str, Any]]:
    """The forget events of a store, oldest first: time, documents, chunks, datasets {old: new}, runs, versions."""
    return read_lines(store / FORGOTTEN)


def forgotten_hashes(store: Path) -> npt.NDArray[np.uint64]:
    """The hashes of all documents that the store has forgotten."""
    names = {name for event in forgotten_events(store) for name in event["documents"]}
    return np.array(sorted(int(name, 16) for name in names), np.uint64)


def current_dataset_id(store: Path, dataset: str) -> str:
    """The present id of a dataset. It changes when documents of the dataset are forgotten."""
    for event in forgotten_events(store):
        dataset = event["datasets"].get(dataset) or dataset
    return dataset
