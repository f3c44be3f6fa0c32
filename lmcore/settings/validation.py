"""Sentences about wrong settings: each wrong value with the place where it was written."""

import re
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_LONGEST_VALUE = 80
"""Most characters of a wrong value in an error."""


class SettingsText:
    """A named TOML text in which settings were written."""

    all_settings = "lmcore/settings/config.py lists all"
    """A hint on where all settings are listed."""

    def __init__(self, name: str, text: str, within: str = "") -> None:
        """``within`` names the only table of ``text`` that holds settings."""
        self._name = name
        lines = dict(_lines(text))
        self._lines = {path[1:]: line for path, line in lines.items() if path[0] == within} if within else lines

    def place_of(self, path: tuple[str, ...]) -> str:
        """The place of a setting, or of its table; empty if neither is in the text."""
        sizes = range(len(path), 0, -1)
        return next((place for size in sizes if (place := self.exact_place_of(path[:size]))), "")

    def exact_place_of(self, path: tuple[str, ...]) -> str:
        """The place of exactly this setting; empty if the text does not set it."""
        return ", ".join(filter(None, [self._name, f"line {self._lines[path]}"])) if path in self._lines else ""


def explain(error: ValidationError, kind: type[BaseModel], origin: SettingsText) -> str:
    """One sentence for each wrong value in settings of a kind."""
    return "; ".join(_sentence(problem, kind, origin) for problem in error.errors())


def _lines(text: str) -> Iterator[tuple[tuple[str, ...], int]]:
    """(path, line) of each key and table that begins a line of a TOML text."""
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            table = _names(header[1])
            yield table, number
        elif key := re.match(r"\s*([\w.\" -]+?)\s*=", line):
            yield table + _names(key[1]), number


def _names(dotted: str) -> tuple[str, ...]:
    return tuple(name.strip(' "') for name in dotted.split("."))


def _sentence(problem: ErrorDetails, kind: type[BaseModel], origin: SettingsText) -> str:
    """One problem: where the setting was written, its name, its value, and what is allowed."""
    path = tuple(str(part) for part in problem["loc"] if not isinstance(part, int))
    where, name = origin.place_of(path), ".".join(path)
    if problem["type"] == "value_error":
        return _contradiction(problem, name, path, origin)
    if problem["type"] == "extra_forbidden":
        return f"{where}: {name}: there is no such setting{_did_you_mean(kind, path, origin)}"
    subject = where if where.startswith("--") else f"{where}: {name}" if where else name
    return f"{subject}: {_value(problem['input'])} {_complaint(problem, kind, path)}"


def _contradiction(problem: ErrorDetails, name: str, path: tuple[str, ...], origin: SettingsText) -> str:
    """A contradiction between settings, with the places of those that the message names."""
    message = problem["msg"].removeprefix("Value error, ")
    words = dict.fromkeys(re.findall(r"[a-z][a-z0-9_]*", message))
    places = [place for word in words if (place := origin.exact_place_of((*path, word)))]
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
"""Complaints by the first word of the type of pydantic's error."""
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


def _did_you_mean(kind: type[BaseModel], path: tuple[str, ...], origin: SettingsText) -> str:
    section = _section(kind, path)
    close = get_close_matches(path[-1], section.model_fields, n=1) if section else []
    near = ".".join((*path[:-1], *close)) if close else _elsewhere(kind, path[-1])
    return f". Did you mean {near}?" if near else f"; {origin.all_settings}"


def _elsewhere(kind: type[BaseModel], name: str) -> str:
    """The full name of a setting with this name in some section; empty if there is none."""
    sections = {above: _section(kind, (above, name)) for above in kind.model_fields}
    return next(
        (f"{above}.{name}" for above, section in sections.items() if section and name in section.model_fields), ""
    )


def _section(kind: type[BaseModel], path: tuple[str, ...]) -> type[BaseModel] | None:
    """The model that has the last name of a path as a field."""
    for name in path[:-1]:
        inner = kind.model_fields[name].annotation if name in kind.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return None
        kind = inner
    return kind
