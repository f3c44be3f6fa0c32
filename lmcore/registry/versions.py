"""The models of a store and their versions.

    models/<name>/  v0001/ v0002/ ...  history.jsonl  champion.json  lock

A version is an artifact that transformers opens, and never changes. No torch.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lmcore.corpus.document_hashes import current_dataset_id
from lmcore.errors import RegistryError, StoreError
from lmcore.registry.history import Event, champion_id, read_history
from lmcore.settings.section import NAME, NUMBER
from lmcore.store.allowed_paths import check_allowed
from lmcore.store.artifacts import check_version
from lmcore.store.files import read_object

RECEIPT = "receipt.json"


@dataclass(frozen=True)
class Version:
    """A version of a model; ``id`` is like v0001."""

    model: str
    id: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.model}/{self.id}"

    @property
    def number(self) -> int:
        return int(self.id[1:])

    @property
    def store(self) -> Path:
        return self.folder.parents[2]

    @property
    def dataset(self) -> Path:
        """The folder of the dataset it was trained on, without what was forgotten since. Raises as ``receipt`` does."""
        return self.store / "datasets" / current_dataset_id(self.store, str(self.receipt()["dataset"]["id"]))

    def receipt(self) -> dict[str, Any]:
        """What the version was made from. Raises RegistryError when it is missing or damaged."""
        path = self.folder / RECEIPT
        try:
            content = read_object(path)
        except StoreError as error:
            raise RegistryError(f"{error}: lm verify {self} says more") from None
        check_version(content, path)
        return content


def model_folder(store: Path, name: str) -> Path:
    """The folder of a model's versions, whether it exists or not.

    Raises RegistryError for a name that leads elsewhere, and ConfigError when it is outside LM_DATA_ROOTS.
    """
    if not re.fullmatch(NAME, name):
        raise RegistryError(f"{name!r} cannot name a model: letters, digits, . _ and - (no / and no . in front)")
    folder = store.absolute() / "models" / name
    check_allowed(folder, "store")
    return folder


def require_model(folder: Path) -> None:
    """Raise RegistryError unless the model in ``folder`` exists."""
    if not folder.is_dir():
        known = ", ".join(models(folder.parents[1])) or "none"
        raise RegistryError(f"there is no model {folder.name} in {folder.parent} (there are: {known})")


def models(store: Path) -> list[str]:
    """The names of all models."""
    return sorted(path.name for path in (store / "models").glob("*") if re.fullmatch(NAME, path.name))


def versions(store: Path, name: str) -> list[Version]:
    """All versions of a model, oldest first."""
    folder = model_folder(store, name)
    found = [Version(name, path.name, path) for path in folder.glob("v*") if re.fullmatch(NUMBER, path.name)]
    return sorted(found, key=lambda version: version.number)


def all_versions(store: Path) -> list[Version]:
    """All versions of all models."""
    return [version for name in models(store) for version in versions(store, name)]


def find_version(store: Path, name: str) -> Version:
    """The version NAME/v0001, or the champion of NAME. Raises RegistryError when there is none."""
    model, _, number = name.partition("/")
    require_model(model_folder(store, model))
    if not number:
        if (found := champion(store, model)) is None:
            raise RegistryError(f"model {model} has no champion in {store / 'models'}: name a version, {model}/v0001")
        return found
    if not re.fullmatch(NUMBER, number):
        raise RegistryError(f"{number!r} is no version: they are called v0001, v0002, ...")
    version = Version(model, number, model_folder(store, model) / number)
    if not version.folder.is_dir():
        known = ", ".join(each.id for each in versions(store, model)) or "none"
        raise RegistryError(f"model {model} has no version {number} in {store / 'models'} (there are: {known})")
    return version


def champion(store: Path, name: str) -> Version | None:
    """The version in use; None before the first promotion.

    Raises StoreError when the history is damaged, and RegistryError when the version is gone.
    """
    current = champion_id(model_folder(store, name))
    return find_version(store, f"{name}/{current}") if current else None


def history(store: Path, name: str) -> list[Event]:
    """Each event of a model, oldest first. Raises StoreError when the history is damaged."""
    return read_history(model_folder(store, name))


def history_rows(store: Path, name: str) -> list[dict[str, str]]:
    """A model's history as a table, the newest first. Raises RegistryError when there is no such model."""
    require_model(model_folder(store, name))
    return [
        {
            "time": f"{datetime.fromisoformat(event['time']):%Y-%m-%d %H:%M} UTC",
            **{column: str(event[column] or "") for column in ("event", "version", "reason")},
        }
        for event in reversed(history(store, name))
    ]
