"""Documents that are to be left out, by their hashes: those the settings name, and those the store has forgotten.

``corpus.exclude_documents`` leaves documents out of one dataset. ``forgotten.jsonl`` in the store is for ever:
a document in it is in no dataset that is made there, and no shard that is written there holds its ids (forget.py).
It holds hashes and names, no text; a line an event.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.errors import ConfigError
from lmcore.settings.config import CorpusConfig
from lmcore.store.json_lines import read_lines

FORGOTTEN = "forgotten.jsonl"
HASH = "[0-9a-fA-F]{16}"


def excluded_hashes(config: CorpusConfig) -> list[int]:
    """What corpus.exclude_documents names, sorted. Raises ConfigError for what is neither hash nor file."""
    found: set[int] = set()
    for entry in config.exclude_documents:
        found |= {int(entry, 16)} if re.fullmatch(HASH, entry) else _hashes_of_file(entry, config)
    return sorted(found)


def _hashes_of_file(entry: str, config: CorpusConfig) -> set[int]:
    """Of a file that begins with a hash: the hashes in it. Of another: its documents, cut as the corpus is."""
    from lmcore.corpus.document_query import (
        DocumentQuery,  # which reads documents as a corpus, and a corpus asks this file
    )

    try:
        lines = Path(entry).expanduser().read_bytes().decode("utf-8-sig", errors="replace").split()
    except OSError as error:
        raise ConfigError(
            f"corpus.exclude_documents: {entry} is neither a document hash (16 hexadecimal digits) nor a file of "
            f"hashes or documents: {error}"
        ) from None
    if not lines or not re.fullmatch(HASH, lines[0]):
        return set(DocumentQuery.parse(entry).cut(config.model_dump()).ways[0].tolist())
    for line in lines:
        if not re.fullmatch(HASH, line):
            raise ConfigError(f"corpus.exclude_documents: {line[:40]!r} in {entry} is no hash of 16 hexadecimal digits")
    return {int(line, 16) for line in lines}


def forgotten_events(store: Path) -> list[dict[str, Any]]:
    """What was forgotten in a store, oldest first: time, documents, chunks, datasets {old: new}, runs, versions."""
    return read_lines(store / FORGOTTEN)


def forgotten_hashes(store: Path) -> npt.NDArray[np.uint64]:
    """The hashes of all documents that the store has forgotten."""
    names = {name for event in forgotten_events(store) for name in event["documents"]}
    return np.array(sorted(int(name, 16) for name in names), np.uint64)


def current_dataset_id(store: Path, dataset: str) -> str:
    """The id of what a dataset has become by documents that were forgotten since; its own where none was."""
    for event in forgotten_events(store):
        dataset = event["datasets"].get(dataset) or dataset
    return dataset
