"""Settings: flags over a TOML file or a preset over defaults, and where a wrong value comes from."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from lmcore.cli.flags import flag
from lmcore.config import RunConfig
from lmcore.errors import ConfigError
from lmcore.presets import find_settings, merge, read_settings

Settings = TypeVar("Settings", bound=BaseModel)

_LONGEST_VALUE = 80
"""Characters of a wrong value that an error repeats."""


def load_config(path: Path, kind: type[Settings] = RunConfig) -> Settings:  # type: ignore[assignment]
    """The settings of a TOML file. Raises ConfigError that names the file, the line and the field."""
    return read(kind, {}, str(path))


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
        origin = _Origin(changes, file)
        raise ConfigError("; ".join(_sentence(problem, kind, origin) for problem in error.errors())) from None


def _fit(settings: dict[str, Any], changes: dict[str, Any]) -> bool:
    """False where a section of the file is no table, which is an error of the file's whatever the flags say."""
    return all(isinstance(settings.get(name, {}), dict) for name, value in changes.items() if isinstance(value, dict))


class _Origin:
    """Where a setting got its value."""

    def __init__(self, changes: dict[str, Any], file: str) -> None:
        self._changes = changes
        self._file = file
        self._lines = dict(_lines(find_settings(file).read_text("utf-8-sig"))) if file else {}

    def of(self, path: tuple[str, ...]) -> str:
        """The flag, or the file with the line of the setting or else of its table, or nothing."""
        sizes = range(len(path), 0, -1)
        return next((place for size in sizes if (place := self.exactly(path[:size]))), "")

    def exactly(self, path: tuple[str, ...]) -> str:
        """The flag, or the file with the line of this very setting, or nothing where it has its default."""
        if self._is_flag(path):
            return flag(*path)
        return f"{self._file}, line {self._lines[path]}" if path in self._lines else ""

    def _is_flag(self, path: tuple[str, ...]) -> bool:
        found: Any = self._changes
        for name in path:
            if not isinstance(found, dict) or name not in found:
                return False
            found = found[name]
        return True


def _lines(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """(path of a key or a table, its line) of a TOML file, as far as each begins a line."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            table = _names(header[1])
            yield table, number
        elif key := re.match(r"\s*([\w.\" -]+?)\s*=", line):
            yield table + _names(key[1]), number


def _names(dotted: str) -> tuple[str, ...]:
    return tuple(name.strip(' "') for name in dotted.split("."))


def _sentence(problem: ErrorDetails, kind: type[BaseModel], origin: _Origin) -> str:
    """One thing that is wrong: where it was set, the setting, the value, and what is allowed."""
    path = tuple(str(part) for part in problem["loc"] if not isinstance(part, int))
    where, name = origin.of(path), ".".join(path)
    if problem["type"] == "value_error":
        return _contradiction(problem, name, path, origin)
    if problem["type"] == "extra_forbidden":
        return f"{where}: {name}: there is no such setting{_did_you_mean(kind, path)}"
    subject = where if where.startswith("--") else f"{where}: {name}" if where else name
    return f"{subject}: {_value(problem['input'])} {_complaint(problem, kind, path)}"


def _contradiction(problem: ErrorDetails, name: str, path: tuple[str, ...], origin: _Origin) -> str:
    """Settings that do not fit together: which, and where each that the message names was set."""
    message = problem["msg"].removeprefix("Value error, ")
    words = dict.fromkeys(re.findall(r"[a-z][a-z0-9_]*", message))
    places = [place for word in words if (place := origin.exactly((*path, word)))]
    return f"{name or 'settings'}: {message}" + (f" (set by {' and '.join(places)})" if places else "")


def _value(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}..."


_COMPLAINTS = {
    "int": "is not a whole number",
    "float": "is not a number",
    "finite": "is not a finite number",
    "bool": "is neither true nor false",
    "string": "is not text",
    "list": "is not a list",
    "dict": "is not a table",
    "model": "is not a table of settings",
    "path": "is not a path",
}
"""What is wrong, by the first word of the type of pydantic's error."""
_BOUNDS = {"ge": "at least {}", "gt": "more than {}", "le": "at most {}", "lt": "less than {}"}


def _complaint(problem: ErrorDetails, kind: type[BaseModel], path: tuple[str, ...]) -> str:
    context = problem.get("ctx", {})
    for name, words in _BOUNDS.items():
        if name in context:
            return f"is out of range: it must be {words.format(context[name])}"
    if problem["type"] == "literal_error":
        return f"is not one of {context['expected']}"
    if problem["type"] == "string_pattern_mismatch":
        return f"is not understood. {_field_help(kind, path)}"
    if problem["type"] in ("string_too_short", "too_short"):
        return "is empty, and must not be"
    return _COMPLAINTS.get(problem["type"].partition("_")[0], f"is refused: {problem['msg']}")


def _field_help(kind: type[BaseModel], path: tuple[str, ...]) -> str:
    section = _section(kind, path)
    return (section.model_fields[path[-1]].description or "").replace("\n", " ") if section else ""


def _did_you_mean(kind: type[BaseModel], path: tuple[str, ...]) -> str:
    section = _section(kind, path)
    close = get_close_matches(path[-1], section.model_fields, n=1) if section else []
    return f". Did you mean {'.'.join((*path[:-1], *close))}?" if close else "; --help-all lists all"


def _section(kind: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel] | None:
    """The model that holds the last name of a path."""
    for name in path[:-1]:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        kind = inner
    return kind
