"""What all settings have in common: frozen, no unknown keys, and fields that say what they may change.

Every field has a role, by what it may change:
    result   what is trained; these fields (with the dataset id) name a run
    speed    how fast, and rounding in the last bits; may differ between two starts of one run
    view     what is shown and where it is kept; likewise
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from blake3 import blake3
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.fields import ComputedFieldInfo, FieldInfo

NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
"""A pattern of names, of runs and of models, that can be those of folders."""
NUMBER = "v[0-9]{4,9}"
"""A pattern of the versions of a model."""

_SURROGATE = r"[\ud800-\udfff]"


def _is_unicode(value: Any) -> Any:
    """``value``, if its text can be written as UTF-8; else raises ValueError."""
    if found := re.search(_SURROGATE, str(value)):
        raise ValueError(
            f"character {found.start() + 1} is U+{ord(found[0]):04X}, half of a character: an emoji was cut in two, "
            "or the bytes are not UTF-8; type it again"
        )
    return value


def _has_names(value: dict[str, Any]) -> dict[str, Any]:
    """``value``, if its keys are Text and none is empty; else raises ValueError."""
    if "" in value:
        raise ValueError("a name is empty")
    return {_is_unicode(name): content for name, content in value.items()}


# The pattern is for Prefect's server, which checks parameters by the schema and never loads the model.
_UNICODE = (AfterValidator(_is_unicode), Field(json_schema_extra={"pattern": r"^[^\ud800-\udfff]*$"}))
Text = Annotated[str, *_UNICODE]
"""Free text. A lone surrogate is refused: a database on SQLite would store it and could never show it again."""
TextPath = Annotated[Path, *_UNICODE]
"""A path, likewise."""
_Value = TypeVar("_Value")
ByName = Annotated[
    dict[str, _Value],
    AfterValidator(_has_names),
    Field(json_schema_extra={"propertyNames": {"pattern": r"^[^\ud800-\udfff]+$"}}),
]
"""Values by a name, which is Text and not empty."""


def speed(default: Any, **constraints: Any) -> Any:
    """A field that changes how fast a run is, never what it computes."""
    return Field(default, json_schema_extra={"role": "speed"}, **constraints)


def view(default: Any, **constraints: Any) -> Any:
    """A field that changes what is shown or where it is kept."""
    return Field(default, json_schema_extra={"role": "view"}, **constraints)


def _title(name: str, info: FieldInfo | ComputedFieldInfo) -> str:
    """learning_rate reads "Learning rate" in forms; a field whose name does not read well has a title of its own."""
    return name.replace("_", " ").capitalize()


_REMOVED = {"CorpusConfig": {"filter": ""}}
"""Settings of earlier versions by section, with the value that changed nothing."""


class Section(BaseModel):
    """Base of all settings: frozen, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        field_title_generator=_title,
    )

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        removed = _REMOVED.get(cls.__name__, {})
        for name in removed.keys() & values:
            if values[name] != removed[name]:
                raise ValueError(f"{name} was removed: leave it out, or use an earlier version of this program")
        return {name: value for name, value in values.items() if name not in removed}


def result_fields(section: BaseModel) -> dict[str, Any]:
    """The fields (nested, JSON values) that decide what is computed: role result."""
    fields: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("role", "result") != "result":
            continue
        value = getattr(section, name)
        fields[name] = result_fields(value) if isinstance(value, BaseModel) else _json(section, name)
    return fields


def _json(section: BaseModel, name: str) -> Any:
    return section.model_dump(mode="json", include={name})[name]


def fingerprint(*parts: Any) -> str:
    """16 hexadecimal digits that name JSON values; equal values, equal name, whatever the key order."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return blake3(text.encode()).hexdigest(8)


def differences(old: dict[str, Any], new: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, old value, new value) of every field that differs; None where one side lacks it."""
    old_fields, new_fields = _flat(old), _flat(new)
    for name in sorted(old_fields.keys() | new_fields.keys()):
        if old_fields.get(name) != new_fields.get(name):
            yield name, old_fields.get(name), new_fields.get(name)


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
