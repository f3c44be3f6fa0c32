"""Files of JSON lines: one object a line, appended whole. A last line that a crash tore is left out."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lmcore.errors import StoreError, no_space_named, owner_named
from lmcore.store.files import write_file
from lmcore.store.strict_json import from_json, to_json

Row = dict[str, Any]


def read_lines(path: Path, last_bytes: int = 0, skip_damaged: bool = False) -> list[Row]:
    """The rows of a file, oldest first; none where the file is missing.

    ``last_bytes`` reads only the whole lines in the last bytes of a long file. Raises StoreError for a damaged line
    that is not the last one, unless ``skip_damaged`` is set.
    """
    *lines, last = _stored_lines(path, last_bytes)
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(from_json(line))
        except ValueError as error:
            if not skip_damaged:
                raise StoreError(f"{path} is damaged in line {number}: {error}. Restore the file from a copy") from None
    return [*rows, from_json(last)] if _is_json(last) else rows


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
        return [b""]
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
    if _is_json(last):
        os.write(descriptor, b"\n")
    else:
        os.truncate(descriptor, size - len(last))


def _is_json(line: bytes) -> bool:
    try:
        from_json(line)
    except ValueError:
        return False
    return True


def _line(row: Row) -> bytes:
    return (to_json(row) + "\n").encode()
