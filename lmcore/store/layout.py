"""The folders of a store.

format.json  tokenizers/<id>/  shards/<key>/  datasets/<id>/  inputs/  runs/<run>/  models/<name>/  forgotten.jsonl
"""

import tempfile
from pathlib import Path

from lmcore.errors import FormatError, StoreError, is_transient, who_may
from lmcore.store.allowed_paths import check_allowed
from lmcore.store.artifacts import FORMAT_VERSION, check_version
from lmcore.store.files import remove_stale_temp, write_file
from lmcore.store.json_files import json_bytes, read_object

_VERSION = "format.json"
_FOLDERS = ("tokenizers", "shards", "datasets", "datasets/*", "inputs", "runs", "runs/*", "models/*")


def prepare_store(store: Path, creates: bool = True) -> Path:
    """Create the store if it is missing, remove stale temporary files, and return its absolute path.

    Raises as ``check_store`` does, and StoreError without ``creates`` when it is missing.
    """
    store = store.expanduser().absolute()
    check_store(store)
    if not (store / _VERSION).exists():
        if not creates:
            raise StoreError(f"there is no store in {store}: give another --store or LM_STORE")
        store.mkdir(parents=True, exist_ok=True)
        write_file(store / _VERSION, json_bytes({"format_version": FORMAT_VERSION}))
    remove_stale_temp(store, *(folder for pattern in _FOLDERS for folder in store.glob(pattern)))
    return store


def check_store(store: Path) -> None:
    """Raise StoreError unless a store can be written in this folder, or made if it is missing, in a known format.

    Nothing is left there. Raises ConfigError when the folder is outside LM_DATA_ROOTS.
    """
    check_allowed(store, "store")
    there = next(folder for folder in (store, *store.absolute().parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if is_transient(error):
            raise
        whose = f" {who_may(there)}" if isinstance(error, PermissionError) else ""
        fault = f"cannot be written, {str(error.strerror).lower()}{whose}" if there.is_dir() else "is a file"
        raise StoreError(f"store: {there} {fault}: give another folder with --store or LM_STORE") from None
    if (record := store / _VERSION).exists():
        try:
            check_version(read_object(record), record)
        except FormatError:
            raise
        except StoreError as error:
            raise StoreError(f"{error}. Delete this file: the next run writes it again") from None


def path_in_store(store: Path, path: Path) -> str:
    """The path relative to the store, so that the store can be moved; the path itself when it is elsewhere."""
    return path.relative_to(store).as_posix() if path.is_relative_to(store) else str(path)
