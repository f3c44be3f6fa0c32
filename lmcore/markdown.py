"""Tables for pages of Markdown."""

from collections.abc import Iterable
from typing import Any


def table(head: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    """Rows of cells under a head. What a cell holds cannot break the table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return str(value).replace("|", "\\|").replace("\n", " ")
