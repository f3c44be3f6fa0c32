"""The folders of a store.

format.json  tokenizers/<id>/  shards/<key>/  datasets/<id>/  inputs/  runs/<run>/  models/<name>/  forgotten.jsonl
"""

from pathlib import Path

from lmcore.errors import StoreError
from lmcore.store.allowed_paths import check_allowed
from lmcore.store.artifacts import FORMAT_VERSION, check_version
from lmcore.store.files import json_bytes, read_object, write_file
from lmcore.store.temporary import remove_stale_temp


def prepare_store(store: Path, creates: bool = True) -> Path:
    """Create the store if it is missing, remove stale temporary files, and return its absolute path.

    Raises StoreError when a newer version of this package wrote it, when it is no folder, or, without ``creates``,
    when it is missing. Raises ConfigError when it is outside LM_DATA_ROOTS.
    """
    check_allowed(store, "store")
    store = store.expanduser().absolute()
    if not creates and not (store / "format.json").exists():
        raise StoreError(f"there is no store in {store}: give another --store or LM_STORE")
    try:
        store.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"store {store} is not a folder: give another --store or LM_STORE") from error
    except PermissionError as error:
        raise StoreError(
            f"store {store} cannot be created: permission denied. Give a --store you may write to"
        ) from error
    version_file = store / "format.json"
    if version_file.exists():
        check_version(read_object(version_file), version_file)
    else:
        write_file(version_file, json_bytes({"format_version": FORMAT_VERSION}))
    remove_stale_temp(store)
    for pattern in ("tokenizers", "shards", "datasets", "datasets/*", "inputs", "runs", "runs/*", "models/*"):
        for folder in store.glob(pattern):
            remove_stale_temp(folder)
    return store


def path_in_store(store: Path, path: Path) -> str:
    """The path relative to the store, so that the store can be moved; the path itself when it is elsewhere."""
    return path.relative_to(store).as_posix() if path.is_relative_to(store) else str(path)
