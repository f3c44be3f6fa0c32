"""Markdown in which no value can be taken for markup, and tables for a terminal."""

import base64
import math
import re
from collections.abc import Iterable
from typing import Any

from rich.cells import cell_len

_MARKUP = re.compile(r"[\\`*<>\[\]|~]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown may read as markup anywhere in a line; an underscore inside a word is none."""
_ADDRESS = re.compile(r"(?<=:)(?=//)|(?<=www)(?=\.)|(?=@)", re.IGNORECASE)
"""Where an address is cut so that no reader makes it a link. A backslash is not enough for that."""
_WORD_JOINER = "\u2060"
"""It has no width."""


class Markup(str):
    """Text that is Markdown already, and stays as it is."""


def escape(text: str) -> str:
    """Text that is shown as it is, in one line. An address in it is not a link, and nothing is fetched from it."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}", _ADDRESS.sub(_WORD_JOINER, _one_line(text)))


def code(text: str) -> str:
    """A code span in one line, whatever the text holds."""
    text = _one_line(text)
    ticks = "`" * (_longest_ticks(text) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fenced(text: str) -> str:
    """A code block whose fence is longer than any run of backticks in the text."""
    fence = "`" * max(3, _longest_ticks(text) + 1)
    return f"{fence}text\n{text}\n{fence}"


def bold(text: str) -> Markup:
    """The escaped text in bold."""
    return Markup(f"**{escape(text)}**")


def picture(name: str, png: bytes) -> Markup:
    """A picture inside the page."""
    return Markup(f"![{name}](data:image/png;base64,{base64.b64encode(png).decode()})")


def number(value: float, form: str) -> str:
    """A figure as ``format`` writes it, or in words where it is none."""
    if math.isnan(value):
        return "not a number"
    return format(value, form) if math.isfinite(value) else "infinite" if value > 0 else "minus infinite"


def byte_size(count: float) -> str:
    """Bytes for a person: 38.9 MB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"


def figure(value: Any) -> str:
    """A whole number with commas; anything else as it is."""
    return f"{value:,}" if type(value) is int else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _longest_ticks(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)


def table(head: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    """Rows of cells under a head. What a cell holds cannot break the table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def rows_table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as a table under their keys; empty without rows."""
    return table(tuple(rows[0]), (row.values() for row in rows)) if rows else ""


def columns(rows: list[dict[str, str]]) -> str:
    """Rows of equal keys in columns of equal width, under their keys; figures stand to the right.

    A Japanese character is as wide as two others on a terminal.
    """
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)] if rows else []
    widths = [max(map(cell_len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(_padded, line, widths)).rstrip() for line in lines)


def _padded(cell: str, width: int) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if cell[:1].isdecimal() else cell + space


def _cell(value: Any) -> str:
    if isinstance(value, Markup):
        return value
    return number(value, "") if isinstance(value, float) else escape(str(value))
