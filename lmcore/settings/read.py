"""Settings from presets, TOML files, command lines and forms, and settings as TOML.

Flags override a file or preset. In a form, ``advanced`` overrides the fields, and these the preset.
"""

import json
import re
import tomllib
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lmcore.errors import ConfigError
from lmcore.settings.config import RunConfig
from lmcore.settings.section import differences, flat
from lmcore.settings.validation import explain, flag, places

Settings = TypeVar("Settings", bound=RunConfig)
_Kind = TypeVar("_Kind", bound=BaseModel)
Tables = dict[str, Any]
"""Settings by name, with one dictionary for each section."""

CUSTOM = "custom"
"""The choice of no preset: only the defaults."""
PRESETS = Path(__file__).parents[2] / "deployments" / "configs"
"""One TOML file for each preset. lmcore also runs without this folder, then without presets."""
_RESETS = {
    "corpus.paths": ["corpus.include", "corpus.exclude", "corpus.document", "sample.prompts"],  # of the old text
    "train.max_tokens": ["train.max_steps"],  # of the three lengths, the first that is not 0 counts
    "train.epochs": ["train.max_steps", "train.max_tokens"],
}
"""A changed setting, and the settings that it resets to their defaults."""


def preset_names() -> list[str]:
    """The names of the presets, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def settings_of_flags(kind: type[_Kind], flags: Tables, file: str = "") -> _Kind:
    """Settings of a kind: ``flags`` over the TOML file or preset ``file`` over the defaults.

    Raises ConfigError that names the flag, or the file and its line, and the value.
    """
    text = _text(_file(file), file) if file else ""
    of_flags = {name: flag(name) for name in flat(flags)}
    return _checked(kind, [_parsed(text, file), flags], places(file, text) | of_flags)


def settings_of(
    kind: type[Settings], preset: str, fields: Tables, advanced: str, origin: dict[str, str] | None = None
) -> Settings:
    """Settings of a kind: the TOML text ``advanced`` over the fields of a form over a preset or CUSTOM.

    Raises ConfigError with the wrong value and its place by ``origin``, by default its line in ``advanced``.
    """
    beneath = {} if preset == CUSTOM else _parsed(_text(PRESETS / f"{preset}.toml", preset), preset)
    origin = places("advanced", advanced) if origin is None else origin
    return _checked(kind, [beneath, fields, _parsed(advanced, "advanced")], origin)


def given(kind: type[RunConfig], fields: Tables) -> Tables:
    """The fields that a person filled in: those that are not empty, off, 0 or the default of the setting."""
    return _filled(fields, kind().model_dump(mode="json"))


def without_effect(fields: Tables, advanced: str, config: RunConfig, unused: tuple[str, ...] = ()) -> list[str]:
    """A line for the settings without effect.

    These are the fields that ``advanced`` overrides, and the settings of ``advanced`` in unused sections.
    """
    final = config.model_dump(mode="json")
    lost = [name for name, was, now in differences(fields, final) if was is not None and was != now]
    idle = ", ".join(name for name in sorted(flat(_parsed(advanced, ""))) if name.partition(".")[0] in unused)
    return [f"{name} of the form: advanced sets it, or what it describes" for name in lost] + ([idle] if idle else [])


def merge(settings: Tables, changes: Tables) -> Tables:
    """A new dictionary: ``settings`` overridden by ``changes``, table by table.

    Changed ``corpus.paths`` reset include, exclude, document and prompts of ``settings``, which belong to the old text.
    A changed length of the training resets the lengths of ``settings`` that would override it.
    """
    merged = {name: dict(value) if isinstance(value, dict) else value for name, value in settings.items()}
    for changed in _RESETS.keys() & flat(changes).keys():
        for section, _, name in (reset.partition(".") for reset in _RESETS[changed]):
            if isinstance(table := merged.get(section), dict):
                table.pop(name, None)
    for name, value in changes.items():
        old = merged.get(name, {})
        if isinstance(value, dict):
            merged[name] = merge(old, value) if isinstance(old, dict) else old  # no table, which is an error
        else:
            merged[name] = value
    return merged


def settings_text(config: RunConfig) -> str:
    """The settings that differ from the defaults, as TOML. As ``advanced`` of the custom form they give them again."""
    return toml_text(config.model_dump(mode="json", exclude_defaults=True))


def toml_text(table: Tables) -> str:
    """``table`` as TOML, with a line for each setting. tomllib only reads it."""
    sections = {name: value for name, value in table.items() if isinstance(value, dict)}
    lines = [_line(name, value) for name, value in table.items() if name not in sections]
    for name, section in sections.items():
        lines += [f"[{_key(name)}]", *(_line(*item) for item in section.items())]
    return "\n".join(lines)


def _line(name: str, value: Any) -> str:
    return f"{_key(name)} = {_value(value)}"


def _key(name: str) -> str:
    return name if re.fullmatch("[A-Za-z0-9_-]+", name) else _value(name)


def _value(value: Any) -> str:
    """A table in one line, else JSON, which is also TOML except for the control character DEL."""
    if isinstance(value, dict):
        return f"{{{', '.join(_line(*item) for item in value.items())}}}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _checked(kind: type[_Kind], layers: list[Tables], origin: dict[str, str]) -> _Kind:
    try:
        return kind.model_validate(reduce(merge, layers))
    except ValidationError as error:
        raise ConfigError(explain(error, kind, origin)) from None


def _filled(fields: Tables, defaults: Tables) -> Tables:
    found = {
        name: _filled(value, defaults[name]) if isinstance(value, dict) else value for name, value in fields.items()
    }
    return {name: value for name, value in found.items() if value and value != defaults[name]}


def _file(name: str) -> Path:
    path = Path(name).expanduser()
    return PRESETS / f"{name}.toml" if not path.is_file() and name in preset_names() else path


def _text(path: Path, name: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        close = get_close_matches(name, preset_names(), n=1)
        hint = f"Did you mean {close[0]}? " if close else ""
        presets = f"{hint}The presets are {', '.join(preset_names())}"
        raise ConfigError(f"{name} is neither a file in {Path.cwd()} nor a preset. {presets}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {error}") from None


def _parsed(text: str, name: str) -> Tables:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        last = f"line {len(text.splitlines())}, the last"
        raise ConfigError(f"{name}: {str(error).replace('end of document', last)}") from None
