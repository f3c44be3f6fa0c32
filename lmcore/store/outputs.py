"""What the stages return: small pydantic models of ids, paths and figures, some kept as a JSON file of a run."""

import json
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict

from lmcore.errors import StoreError, owner_named
from lmcore.store.artifacts import checksum
from lmcore.store.files import write_file
from lmcore.store.json_files import finite, from_json, json_bytes


class Output(BaseModel):
    """What a stage returns, small enough for JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def verify(self) -> None:
        """Raise StoreError unless all artifacts that this output names are complete and unchanged."""
        raise NotImplementedError(f"{type(self).__name__} has nothing on disk to verify")


class Record(Output):
    """An output that is kept as one JSON file in a run's folder."""

    file_name: ClassVar[str]
    folder: Path
    """The run's folder. It is not written to the file, so that a store can be moved."""

    @property
    def store(self) -> Path:
        return self.folder.parent.parent

    def save(self) -> Self:
        """Write the file and return this record."""
        content = finite(self.model_dump(mode="json", exclude={"folder"}))
        write_file(self.folder / self.file_name, json_bytes({**content, "checksum": checksum(content)}))
        return self

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The record in ``folder``; None when it is missing, damaged or has other fields. Raises OSError."""
        path = folder / cls.file_name
        try:
            with owner_named(path):
                text = path.read_bytes()
            content = json.loads(text)
            if content.pop("checksum") != checksum(content):
                return None
            return cls.model_validate({**from_json(text), "folder": folder}, extra="ignore")
        except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def verify(self) -> None:
        if self.load(self.folder) != self:
            raise StoreError(f"{self.folder / self.file_name} is missing or has other content")
