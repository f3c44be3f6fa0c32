"""Folders by the names that people give them: a path, a run, a dataset or a version of a model.

What a setting names, a file or a name on the Hugging Face hub, is resolved in ``store/hub.py``.
"""

from pathlib import Path
from typing import Literal

from lmcore.errors import StoreError
from lmcore.registry.versions import find_version, models
from lmcore.store.allowed_paths import check_folder_allowed

Kind = Literal["folder", "run", "dataset", "version"]


def find(store: Path, name: str, *kinds: Kind) -> Path:
    """The folder that has this name, the first of ``kinds`` that fits.

    A folder is given by its path, a run by its name, a dataset by its id, a version by NAME/v0001 or NAME for the
    champion. Raises StoreError when nothing has the name, RegistryError when the model has no such version, and
    ConfigError when the folder is outside LM_DATA_ROOTS.
    """
    places = {"folder": Path(name).expanduser(), "run": store / "runs" / name, "dataset": store / "datasets" / name}
    for kind in kinds:
        if kind == "version":
            if name.partition("/")[0] in models(store):
                return find_version(store, name).folder
        elif places[kind].is_dir():
            check_folder_allowed(places[kind], kind)
            return places[kind].absolute()
    raise StoreError(f"there is no {' or '.join(kinds)} named {name} in {store} or {Path.cwd()}")
