"""Writing settings as TOML. tomllib only reads it."""

import json
import re
from collections.abc import Iterator
from typing import Any

_BARE_KEY = re.compile("[A-Za-z0-9_-]+")


def toml_text(table: dict[str, Any]) -> str:
    """``table`` as TOML. It may hold text, numbers, booleans, lists of these, and tables."""
    return "\n".join(_lines(table, ()))


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    """Values, then inner tables: a value after the header of an inner table would belong to that table."""
    tables = {name: value for name, value in table.items() if isinstance(value, dict)}
    if path and (len(tables) < len(table) or not table):
        yield f"[{'.'.join(map(_key, path))}]"
    for name, value in table.items():
        if name not in tables:
            yield f"{_key(name)} = {_value(value)}"
    for name, value in tables.items():
        yield from _lines(value, (*path, name))


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _value(name)


def _value(value: Any) -> str:
    """A value as JSON, which is also TOML except for the control character DEL."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
