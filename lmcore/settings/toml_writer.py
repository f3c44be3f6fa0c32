<<<<<<< HEAD
"""Write settings as TOML. The standard library can only read it."""
=======
"""Writing settings as TOML. tomllib only reads it."""
>>>>>>> main

import json
import re
from collections.abc import Iterator
from typing import Any

_BARE_KEY = re.compile("[A-Za-z0-9_-]+")


def toml_text(table: dict[str, Any]) -> str:
<<<<<<< HEAD
    """TOML text for ``table``, which may hold text, numbers, booleans, lists of these, and tables."""
=======
    """``table`` as TOML. It may hold text, numbers, booleans, lists of these, and tables."""
>>>>>>> main
    return "\n".join(_lines(table, ()))


def _lines(table: dict[str, Any], path: tuple[str, ...]) -> Iterator[str]:
<<<<<<< HEAD
    """The lines of a table. Values come first: after the head of an inner table they would belong to that table."""
=======
    """Values, then inner tables: a value after the header of an inner table would belong to that table."""
>>>>>>> main
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
<<<<<<< HEAD
    """A value as TOML: JSON, except for the control character DEL."""
=======
    """A value as JSON, which is also TOML except for the control character DEL."""
>>>>>>> main
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
