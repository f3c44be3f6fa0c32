"""The models of a store, their versions, and the history that names the champion. Everything here only reads.

    models/<name>/  v0001/ v0002/ ...  history.jsonl  champion.json  lock

A version is an artifact that transformers opens, and never changes. The history has a line for each event. The last
line that promotes a version or rolls back to one names the champion. champion.json is a copy of that line. No torch.
"""

import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from lmcore.errors import RegistryError, StoreError
from lmcore.settings.section import NAME, NUMBER
from lmcore.store.allowed_paths import check_allowed, check_folder_allowed
from lmcore.store.artifacts import check_version, find_artifact
from lmcore.store.json_files import read_lines, read_object

RECEIPT = "receipt.json"
HISTORY = "history.jsonl"
CHAMPION = "champion.json"
CHANGES_CHAMPION = ("promoted", "rolled back")

Event = dict[str, Any]
"""time (UTC), event, version, from (the champion before), reason, decision."""
Kind = Literal["folder", "run", "dataset", "version"]


@dataclass(frozen=True)
class Version:
    """A version of a model; ``id`` is like v0001. What the receipt says is read from it, and raises as it does."""

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

    def receipt(self) -> dict[str, Any]:
        """What the version was made from. Raises RegistryError when it is missing or damaged."""
        path = self.folder / RECEIPT
        try:
            content = read_object(path)
        except StoreError as error:
            raise RegistryError(f"{error}: lm verify {self} says more") from None
        check_version(content, path)
        return content

    def figures(self) -> dict[str, Any]:
        """The bits per byte of its evaluation, and the tokens that it was trained on."""
        receipt = self.receipt()
        return {"bits_per_byte": receipt["evaluation"]["bits_per_byte"], "tokens": receipt["training"]["tokens"]}

    @property
    def dataset(self) -> Path:
        """The folder of the dataset it was trained on, without what was forgotten since."""
        from lmcore.corpus.document_hashes import current_dataset_id  # and with it numpy

        return self.store / "datasets" / current_dataset_id(self.store, str(self.receipt()["dataset"]["id"]))

    @property
    def tokenizer(self) -> Path:
        """The folder of its tokenizer."""
        return self.store / "tokenizers" / str(self.receipt()["tokenizer"]["id"])

    @property
    def weights(self) -> str:
        """The hash of its weights."""
        return str(self.receipt()["training"]["weights"])

    @property
    def stable_checkpoint(self) -> Path | None:
        """The checkpoint before the decay, if there is one that is whole."""
        receipt = self.receipt()
        if not receipt["training"]["trunk"]:
            return None
        path = self.store / "runs" / receipt["run"] / "checkpoints" / Path(receipt["training"]["trunk"]).name
        return path if find_artifact(path, keep_damaged=True) else None


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


def find(store: Path, name: str, *kinds: Kind) -> Path:
    """The folder that has this name, the first of ``kinds`` that fits.

    A folder is given by its path, a run by its name, a dataset by its id, a version as ``find_version`` takes it.
    Raises StoreError when nothing has the name, RegistryError when the model has no such version, and ConfigError when
    the folder is outside LM_DATA_ROOTS.
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


def find_version(store: Path, name: str) -> Version:
    """The version NAME/v0001, or the champion of NAME. Raises RegistryError when there is none."""
    model, _, number = name.partition("/")
    require_model(model_folder(store, model))
    if not number:
        if (found := champion(store, model)) is None:
            raise RegistryError(f"model {model} has no champion in {store / 'models'}: name a version, {model}/v0001")
        return found
    if not re.fullmatch(NUMBER, number):
        raise RegistryError(f"{number!r} is not a version: versions are called v0001, v0002, ...")
    version = Version(model, number, model_folder(store, model) / number)
    if not version.folder.is_dir():
        known = ", ".join(each.id for each in versions(store, model)) or "none"
        raise RegistryError(f"model {model} has no version {number} in {store / 'models'} (there are: {known})")
    return version


def champion(store: Path, name: str) -> Version | None:
    """The version in use; None before the first promotion.

    Raises StoreError when the history is damaged, and RegistryError when the version is gone.
    """
    event = champion_event(history(store, name))
    return find_version(store, f"{name}/{event['version']}") if event else None


def champion_event(events: list[Event]) -> Event | None:
    """The event of a history that made the present champion; None before the first promotion."""
    return next((event for event in reversed(events) if event["event"] in CHANGES_CHAMPION), None)


def history(store: Path, name: str) -> list[Event]:
    """Each event of a model, oldest first. Raises StoreError when the history is damaged.

    A torn or lost last line is taken from champion.json.
    """
    folder = model_folder(store, name)
    events, copy = read_lines(folder / HISTORY), champion_copy(folder)
    return events if copy is None or copy in events else [*events, copy]


def champion_copy(folder: Path) -> Event | None:
    """The event in champion.json; None where the file is missing or damaged: the next change writes it again."""
    try:
        event = read_object(folder / CHAMPION)
    except StoreError:
        return None
    return event if {"version", "event", "time"} <= event.keys() else None


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
