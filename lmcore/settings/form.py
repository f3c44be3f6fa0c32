"""The settings of a run from a form: a preset, a few fields, and a TOML text with all other settings.

The fields override the preset, and the text overrides both.
"""

import tomllib
from typing import Any, TypeVar

from pydantic import ValidationError

from lmcore.errors import ConfigError
from lmcore.settings.config import RunConfig
from lmcore.settings.presets import merge, read_preset
from lmcore.settings.section import differences
from lmcore.settings.toml_writer import toml_text
from lmcore.settings.validation import SettingsText, explain

Settings = TypeVar("Settings", bound=RunConfig)
Tables = dict[str, Any]
"""Settings by name, with one dictionary for each section."""

CUSTOM = "custom"
"""The choice of no preset: only the defaults."""


def given(kind: type[RunConfig], fields: Tables) -> Tables:
    """The fields that a person filled in: those that are not empty, off, 0 or the default of the setting."""
    return _without(fields, kind().model_dump(mode="json"))


def settings_of(
    kind: type[Settings], preset: str, fields: Tables, advanced: str, origin: SettingsText | None = None
) -> Settings:
    """Checked settings of a kind. ``origin`` is the text that people wrote, by default ``advanced``.

    Raises ConfigError with the wrong value and its line in that text.
    """
    beneath = {} if preset == CUSTOM else read_preset(preset)
    tables = merge(merge(beneath, fields), _read(advanced))
    try:
        return kind.model_validate(tables)
    except ValidationError as error:
        raise ConfigError(explain(error, kind, origin or SettingsText("advanced", advanced))) from None


def without_effect(fields: Tables, advanced: str, config: RunConfig, unused: tuple[str, ...] = ()) -> list[str]:
    """A line for each setting without effect.

    These are the fields that ``advanced`` overrides, and the settings of ``advanced`` in unused sections.
    """
    final = config.model_dump(mode="json")
    lost = [name for name, was, now in differences(fields, final) if was is not None and was != now]
    idle = ", ".join(name for name, *_ in differences(_read(advanced), {}) if name.partition(".")[0] in unused)
    return [f"{name} of the form: advanced sets it, or what it describes" for name in lost] + ([idle] if idle else [])


def settings_text(config: RunConfig) -> str:
    """The settings that differ from the defaults, as TOML. As ``advanced`` of the custom form they give them again."""
    return toml_text(config.model_dump(mode="json", exclude_defaults=True))


def _without(fields: Tables, defaults: Tables) -> Tables:
    found = {}
    for name, value in fields.items():
        kept = _without(value, defaults[name]) if isinstance(value, dict) else value
        if kept and kept != defaults[name]:
            found[name] = kept
    return found


def _read(advanced: str) -> Tables:
    try:
        return tomllib.loads(advanced)
    except tomllib.TOMLDecodeError as error:
        last = f"line {len(advanced.splitlines())}, the last"
        raise ConfigError(f"advanced: {str(error).replace('end of document', last)}") from None
