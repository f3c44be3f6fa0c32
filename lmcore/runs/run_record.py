"""config.json of a run: its identity, settings, tokenizer and shape, as JSON."""

from pathlib import Path
from typing import Any

from lmcore.errors import StoreError, owner_named
from lmcore.store.artifacts import check_version
from lmcore.store.json_files import from_json


def read_record(folder: Path) -> dict[str, Any]:
    """The record in a run's folder. Raises StoreError when it is missing, damaged or of a newer format."""
    path = folder.absolute() / "config.json"
    try:
        with owner_named(path):
            record: dict[str, Any] = from_json(path.read_bytes())
        check_version(record["identity"], path)
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"{folder} is no run: it has no config.json") from None
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_record(folder, error) from error
    return record


def damaged_record(folder: Path, error: Exception) -> StoreError:
    """The error of a record that cannot be used."""
    return StoreError(f"{folder.absolute() / 'config.json'} is damaged: {error!r}. Begin the run again with --fresh")
