"""Where a thing is that people name: a folder, a run, or a version of a model."""

from pathlib import Path

from lmcore.errors import StoreError
from lmcore.registry.versions import find_version, models
from lmcore.store.allowed_paths import check_folder_allowed


def find_folder(store: Path, name: str) -> Path:
    """A folder given by its path, a run's by its name, or a version's by NAME/v0001 (NAME alone: the champion's).

    Raises StoreError when there is none of these, and ConfigError when it is outside LM_DATA_ROOTS.
    """
    for folder in (Path(name).expanduser(), store / "runs" / name):
        if folder.is_dir():
            check_folder_allowed(folder, "model or run")
            return folder
    if name.partition("/")[0] in models(store):
        return find_version(store, name).folder
    raise StoreError(f"there is neither a folder {name} nor a run or model of that name in {store}")
