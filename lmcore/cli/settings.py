"""Settings: flags over a TOML file or a preset over defaults, and where a wrong value comes from."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lmcore.cli.flags import flag
from lmcore.errors import ConfigError
from lmcore.settings.presets import find_settings, merge, read_settings
from lmcore.settings.validation import SettingsText, explain

Settings = TypeVar("Settings", bound=BaseModel)


def read(kind: type[Settings], changes: dict[str, Any], file: str = "") -> Settings:
    """Settings of a kind: ``changes`` from the command line over the TOML file or preset ``file`` over the defaults.

    Raises ConfigError that names the flag, or the file and its line, and the value.
    """
    settings = read_settings(file) if file else {}
    if not _fit(settings, changes):
        changes = {}
    try:
        return kind.model_validate(merge(settings, changes))
    except ValidationError as error:
        raise ConfigError(explain(error, kind, _Flags(changes, file))) from None


def _fit(settings: dict[str, Any], changes: dict[str, Any]) -> bool:
    """False where a section of the file is no table, which is an error of the file's whatever the flags say."""
    return all(isinstance(settings.get(name, {}), dict) for name, value in changes.items() if isinstance(value, dict))


class _Flags(SettingsText):
    """Flags over a file."""

    all_settings = "--help-all lists all"

    def __init__(self, changes: dict[str, Any], file: str) -> None:
        super().__init__(file, find_settings(file).read_text("utf-8-sig") if file else "")
        self._changes = changes

    def exact_place_of(self, path: tuple[str, ...]) -> str:
        return flag(*path) if self._is_flag(path) else super().exact_place_of(path)

    def _is_flag(self, path: tuple[str, ...]) -> bool:
        found: Any = self._changes
        for name in path:
            if not isinstance(found, dict) or name not in found:
                return False
            found = found[name]
        return True
