"""Sentences about wrong settings: each wrong value with the place where it was written."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_LONGEST_VALUE = 80
"""Most characters of a wrong value in an error."""
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


def flag(name: str) -> str:
    """--train.max-steps of train.max_steps."""
    return "--" + name.replace("_", "-")


def places(name: str, text: str, within: str = "") -> dict[str, str]:
    """The places of the settings and tables in a TOML text, by their dotted names.

    ``within`` names the only table of ``text`` that holds settings, with a dot at its end.
    """
    found, table = {}, ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            setting = _unquoted(header[1])
            table = f"{setting}."
        elif key := re.match(r"\s*([\w.\" -]+?)\s*=", line):
            setting = table + _unquoted(key[1])
        else:
            continue
        if setting.startswith(within):
            found[setting.removeprefix(within)] = f"{name}, line {number}".removeprefix(", ")
    return found


def explain(error: ValidationError, kind: type[BaseModel], origin: Mapping[str, str]) -> str:
    """One sentence for each wrong value in settings of a kind. ``origin`` has the places of settings by dotted name."""
    return "; ".join(_sentence(problem, kind, origin) for problem in error.errors())


def _unquoted(dotted: str) -> str:
    return ".".join(name.strip(' "') for name in dotted.split("."))


def _sentence(problem: ErrorDetails, kind: type[BaseModel], origin: Mapping[str, str]) -> str:
    """One problem: where the setting was written, its name, its value, and what is allowed."""
    path = [str(part) for part in problem["loc"] if not isinstance(part, int)]
    name = ".".join(path)
    above = (".".join(path[:size]) for size in range(len(path), 0, -1))
    where = next((origin[each] for each in above if each in origin), "")
    if problem["type"] == "value_error":
        return _contradiction(problem, name, origin)
    if problem["type"] == "extra_forbidden":
        return f"{where}: {name}: there is no such setting{_did_you_mean(kind, path)}"
    subject = where if where.startswith("--") else f"{where}: {name}" if where else name
    value = repr(problem["input"])
    shown = value if len(value) <= _LONGEST_VALUE else f"{value[:_LONGEST_VALUE]}..."
    return f"{subject}: {shown} {_complaint(problem, kind, path)}"


def _contradiction(problem: ErrorDetails, name: str, origin: Mapping[str, str]) -> str:
    """A contradiction between settings, with the places of those that the message names."""
    message = problem["msg"].removeprefix("Value error, ")
    words = dict.fromkeys(re.findall(r"[a-z][a-z0-9_]*", message))
    settings = [f"{name}.{word}".lstrip(".") for word in words]
    found = " and ".join(origin[setting] for setting in settings if setting in origin)
    return f"{name or 'settings'}: {message}" + (f" (set by {found})" if found else "")


def _complaint(problem: ErrorDetails, kind: type[BaseModel], path: list[str]) -> str:
    context = problem.get("ctx", {})
    if bound := next((_BOUNDS[name].format(context[name]) for name in _BOUNDS if name in context), ""):
        return f"is out of range: it must be {bound}"
    if problem["type"] == "literal_error":
        return f"is not one of {context['expected']}"
    if problem["type"] == "string_pattern_mismatch":
        section = _section(kind, path)
        help_text = section.model_fields[path[-1]].description if section else None
        return f"is not understood. {' '.join((help_text or '').split())}"
    if problem["type"] in ("string_too_short", "too_short"):
        return "is empty, and must not be"
    return _COMPLAINTS.get(problem["type"].partition("_")[0], f"is refused: {problem['msg']}")


def _did_you_mean(kind: type[BaseModel], path: list[str]) -> str:
    """The setting of a similar name in its section, else that of the same name in another one."""
    section = _section(kind, path)
    if close := get_close_matches(path[-1], section.model_fields, n=1) if section else []:
        return f". Did you mean {'.'.join([*path[:-1], *close])}?"
    sections: dict[str, Any] = {name: info.annotation for name, info in kind.model_fields.items()}
    holders = [name for name, inner in sections.items() if path[-1] in getattr(inner, "model_fields", {})]
    if holders:
        return f". Did you mean {holders[0]}.{path[-1]}?"
    return f"; `lm {'retrain' if 'retraining' in kind.model_fields else 'pretrain'} --help-all` lists all"


def _section(kind: Any, path: list[str]) -> type[BaseModel] | None:
    """The model that has the last name of a path as a field."""
    for name in path[:-1]:
        fields = getattr(kind, "model_fields", {})
        kind = fields[name].annotation if name in fields else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
