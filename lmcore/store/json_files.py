"""JSON objects, and files of one JSON object a line, that every program reads (RFC 8259): without NaN and infinities.

A number that is not finite is written as null, with a word beside it, {"loss": null, "loss_is": "NaN"}. ``from_json``
restores the number. It also reads the NaN and Infinity that Python writes.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmcore.errors import StoreError, no_space_named, owner_named
from lmcore.store.files import write_file

Row = dict[str, Any]

_WORDS = ("NaN", "Infinity", "-Infinity")


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON on one line, or indented; keys in the order given."""
    return json.dumps(finite(content), ensure_ascii=False, indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """The content that ``to_json`` wrote. Raises ValueError when ``text`` is not JSON."""
    return json.loads(text, object_hook=_restored)


def finite(content: Any) -> Any:
    """The content as it is written: null and a word for each number that is not finite."""
    if isinstance(content, dict):
        words = {f"{name}_is": json.dumps(value) for name, value in content.items() if _is_odd(value)}
        return {name: finite(value) for name, value in content.items()} | words
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if _is_odd(content) else content


def _is_odd(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _restored(content: Row) -> Row:
    words = {f"{name}_is" for name, value in content.items() if value is None} & content.keys()
    figures = {word.removesuffix("_is"): float(content.pop(word)) for word in words if content[word] in _WORDS}
    return content | figures


def json_bytes(content: Any) -> bytes:
    """Indented JSON in UTF-8, keys in the order given."""
    return (to_json(content, indent=1) + "\n").encode()


def read_object(path: Path) -> Row:
    """The JSON object in a file. Raises StoreError when the file is missing or damaged."""
    try:
        with owner_named(path):
            content = from_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except NotADirectoryError:
        raise StoreError(f"{path.parent} is not a folder") from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path} is damaged: it holds no JSON object")
    return content


def read_lines(path: Path, last_bytes: int = 0, skip_damaged: bool = False) -> list[Row]:
    """The rows of a file, oldest first; none where the file is missing. A last line that a crash tore is left out.

    ``last_bytes`` reads only the whole lines in the last bytes of a long file. Raises StoreError for a damaged line
    that is not the last one, unless ``skip_damaged`` is set.
    """
    lines, rows = _stored_lines(path, last_bytes), []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(from_json(line))
        except ValueError as error:
            if number < len(lines) and not skip_damaged:
                raise StoreError(f"{path} is damaged in line {number}: {error}. Restore the file from a copy") from None
    return rows


def append_line(path: Path, row: Row, synced: bool = True) -> None:
    """Append a row, in place of a torn last line. ``synced``: it is on the disk when this returns."""
    with no_space_named(path.parent), open(path, "ab+") as file:
        _end_last_line(file.fileno(), path)
        file.write(_line(row))
        if synced:
            file.flush()
            os.fsync(file.fileno())


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file atomically."""
    write_file(path, b"".join(map(_line, rows)))


def _stored_lines(path: Path, last_bytes: int = 0) -> list[bytes]:
    """The lines, and last what follows the last line end."""
    if not path.exists():
        return []
    with owner_named(path), open(path, "rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - last_bytes) if last_bytes else 0
        file.seek(start)
        if start:
            file.readline()
        return file.read().split(b"\n")


def _end_last_line(descriptor: int, path: Path) -> None:
    """Give the last line its end if it is JSON, else remove it."""
    size = os.fstat(descriptor).st_size
    if not size or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    last = _stored_lines(path)[-1]
    try:
        from_json(last)
        os.write(descriptor, b"\n")
    except ValueError:
        os.truncate(descriptor, size - len(last))


def _line(row: Row) -> bytes:
    return (to_json(row) + "\n").encode()
