"""Presets: the settings that ship, by name; and the merging of settings from several places."""

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lmcore.errors import ConfigError

FOLDER = Path(__file__).parents[2] / "deployments" / "configs"
"""One TOML file for each preset. lmcore also runs without this folder, then without presets."""

_RESETS: dict[tuple[str, str], dict[str, tuple[str, ...]]] = {
    ("corpus", "paths"): {"corpus": ("include", "exclude", "document"), "sample": ("prompts",)},  # of the old text
    ("train", "max_tokens"): {"train": ("max_steps",)},  # of the three lengths, the first that is not 0 counts
    ("train", "epochs"): {"train": ("max_steps", "max_tokens")},
}
"""A changed setting, and the settings by section that it resets to their defaults."""


def preset_names() -> list[str]:
    """The names of the presets, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find_settings(name: str) -> Path:
    """The file of a preset (``tiny``), or the TOML file itself. An existing file wins over a preset of its name."""
    path = Path(name).expanduser()
    return FOLDER / f"{name}.toml" if not path.is_file() and name in preset_names() else path


def read_settings(name: str) -> dict[str, Any]:
    """The settings of a preset (``tiny``) or of a TOML file, as nested dictionaries.

    An existing file wins over a preset of its name. Raises ConfigError when there is neither, or when the file is not
    TOML.
    """
    return _read(find_settings(name), name)


def read_preset(name: str) -> dict[str, Any]:
    """The settings of a preset, never of a file in the current folder. Raises ConfigError for an unknown name."""
    return _read(FOLDER / f"{name}.toml", name)


def _read(path: Path, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(_not_found(name)) from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def merge(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A new dictionary: ``settings`` overridden by ``changes``, table by table.

    Changed ``corpus.paths`` reset include, exclude, document and prompts of ``settings``, which belong to the old text.
    A changed length of the training resets the lengths of ``settings`` that would override it.
    """
    merged = dict(settings)
    for (section, changed), resets in _RESETS.items():
        if changed in _table(changes, section):
            merged |= {name: _without(old, resets[name]) for name, old in merged.items() if name in resets}
    for name, value in changes.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _without(table: Any, names: tuple[str, ...]) -> Any:
    return {name: value for name, value in table.items() if name not in names} if isinstance(table, dict) else table


def _table(settings: dict[str, Any], section: str) -> dict[str, Any]:
    """The table of a section; empty if it is not a table, which validation reports later."""
    found = settings.get(section)
    return found if isinstance(found, dict) else {}


def _not_found(name: str) -> str:
    close = get_close_matches(name, preset_names(), n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return f"{name} is neither a file in {Path.cwd()} nor a preset. {hint}The presets are {', '.join(preset_names())}"
