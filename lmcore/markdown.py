"""Tables: for pages of Markdown, and for a terminal."""

from collections.abc import Iterable
from typing import Any


def table(head: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    """Rows of cells under a head. What a cell holds cannot break the table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def columns(rows: list[dict[str, str]]) -> str:
    """Rows of equal keys in columns of equal width, under their keys; figures stand to the right."""
    lines = [tuple(rows[0]), *(tuple(row.values()) for row in rows)] if rows else []
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(_padded, line, widths)).rstrip() for line in lines)


def _padded(cell: str, width: int) -> str:
    return cell.rjust(width) if cell[:1].isdecimal() else cell.ljust(width)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
