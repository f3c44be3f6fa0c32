"""What all settings have in common: frozen, no unknown keys, and fields that say what they may change.

Every field has a role, by what it may change:
    result   what is trained; these fields (with the dataset id) name a run
    speed    how fast, and rounding in the last bits; may differ between two starts of one run
    view     what is shown and where it is kept; likewise
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from blake3 import blake3
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""A pattern of names, of runs and of models, that can be those of folders."""
NUMBER = "v[0-9]{4,9}"
"""A pattern of the versions of a model."""


def _is_unicode(value: Any) -> Any:
    """``value``, if its text can be written as UTF-8; else raises ValueError."""
    if found := re.search(r"[\ud800-\udfff]", str(value)):
        raise ValueError(
            f"character {found.start() + 1} is U+{ord(found[0]):04X}, half of a character: an emoji was cut in two, "
            "or the bytes are not UTF-8; type it again"
        )
    return value


def _has_names(value: dict[str, Any]) -> dict[str, Any]:
    if "" in value:
        raise ValueError("a name is empty")
    return {_is_unicode(name): content for name, content in value.items()}


# The pattern is for Prefect's server, which checks parameters by the schema and never loads the model.
_UNICODE = (AfterValidator(_is_unicode), Field(json_schema_extra={"pattern": r"^[^\ud800-\udfff]*$"}))
Text = Annotated[str, *_UNICODE]
"""Free text. A lone surrogate is refused: a database on SQLite would store it and could never show it again."""
TextPath = Annotated[Path, *_UNICODE]
_LOCATION = object()
Location = Annotated[Text, _LOCATION]
"""Text that is a path or a URL, or may be one beside other things. LM_DATA_ROOTS confines it."""
_Value = TypeVar("_Value")
ByName = Annotated[dict[str, _Value], AfterValidator(_has_names)]
"""Values by a name, which is Text and not empty."""

speed: Any = partial(Field, json_schema_extra={"role": "speed"})
"""A field that changes how fast a run is, never what it computes."""
view: Any = partial(Field, json_schema_extra={"role": "view"})
"""A field that changes what is shown or where it is kept."""


_REMOVED: dict[str, dict[str, Any]] = {
    "CorpusConfig": {"filter": ""},
    "DatasetConfig": {"epochs": {}},
    "TrainConfig": {"decay_shape": "1-sqrt"},
}
"""Settings of earlier versions by section, with the value that changed nothing."""
_REPLACED: dict[str, dict[str, str]] = {
    "GateConfig": {
        "old_margin_bits_per_byte": "set old_margin",
        "minimum_documents": "set minimum_old_documents and minimum_new_documents",
        "every_source": "leave it out, each source has a rule of its own now",
    }
    | dict.fromkeys(("confidence", "resamples", "seed"), "leave it out, the intervals have fixed levels now"),
}
"""Settings of earlier versions by section, with what to do now. No value of theirs is taken."""


class Section(BaseModel):
    """Base of all settings: frozen, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name, now in _REPLACED.get(cls.__name__, {}).items():
            if name in values:
                raise ValueError(f"{name} was removed: {now}")
        removed = _REMOVED.get(cls.__name__, {})
        for name in removed.keys() & values:
            if values[name] != removed[name]:
                raise ValueError(f"{name} was removed: leave it out, or use an earlier version of this program")
        return {name: value for name, value in values.items() if name not in removed}


def result_fields(section: BaseModel) -> dict[str, Any]:
    """The fields (nested, JSON values) that decide what is computed: role result. Ids have removed ones too."""
    values, fields = section.model_dump(mode="json"), dict(_REMOVED.get(type(section).__name__, {}))
    for name, info in type(section).model_fields.items():
        value, extra = getattr(section, name), info.json_schema_extra
        if not isinstance(extra, dict) or extra.get("role", "result") == "result":
            fields[name] = result_fields(value) if isinstance(value, BaseModel) else values[name]
    return fields


def locations(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted name, path or URL) of every setting that is a Location, or a Path, which is made absolute."""
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from locations(value, f"{prefix}{name}.")
        elif _is_location(info.annotation) or any(map(_is_location, info.metadata)):
            yield from _each_text(value, f"{prefix}{name}")


def _is_location(hint: Any) -> bool:
    return hint in (Path, _LOCATION) or any(map(_is_location, get_args(hint)))


def _each_text(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, content in value.items():
            yield from _each_text(content, f"{name}.{key}")
    elif isinstance(value, list):
        yield from ((name, text) for text in value)
    else:
        yield name, str(value.expanduser().absolute() if isinstance(value, Path) else value)


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that name JSON values; equal values, equal name, whatever the key order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return blake3(text.encode()).hexdigest(8)


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of every field that differs; None where one side lacks it."""
    old_fields, new_fields = flat(old), flat(new)
    for name in sorted(old_fields.keys() | new_fields.keys()):
        if old_fields.get(name) != new_fields.get(name):
            yield name, old_fields.get(name), new_fields.get(name)


def flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in fields.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found
