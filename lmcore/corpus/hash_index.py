"""A small SQLite file of hashes and chunk indexes of unchanged files, so that they are not read again.

Losing it costs time, never a result. Every row has a checksum, and names a version of a file (size, time, inode;
ETag) or content. ``--rehash`` ignores the hashes.
"""

import io
import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

from lmcore import clock
from lmcore.corpus.remote import SECONDS_OF_DOUBT, open_stored, read_stored, size_and_version
from lmcore.settings.section import fingerprint
from lmcore.settings.urls import is_url
from lmcore.store.json_files import from_json, to_json

_TABLE = "create table if not exists hints (key text primary key, value text, checksum text)"
_SELECT = "select value, checksum from hints where key = ?"
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""SQLITE_ERROR: the table has other columns. All other codes come from the system: memory, permission, a full disk."""
_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_log = logging.getLogger(__name__)


class HashIndex:
    """Remembers file hashes by path, and other values by key. Nothing is written before ``save``.

    Without a store it remembers for as long as it lives.
    """

    def __init__(self, store: Path | None, rehash: bool = False) -> None:
        self._path = store / "index.sqlite" if store else None
        self._rehash = rehash
        self._new: dict[str, Any] = {}
        self._database: sqlite3.Connection | None = None
        self._head: tuple[str, bytes] = ("", b"")
        """The file that was read last, and its first megabyte: each file is read once."""
        if self._path is not None and self._path.exists():
            self._open(self._path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.save()
        if self._database is not None:
            self._database.close()

    def hash_of(self, path: str | Path) -> str:
        """The hash of a file; remembered if this version of the file was hashed before. Raises OSError."""
        return self.size_and_hash(str(path))[1]

    def size_and_hash(self, path: str, rehash: bool = False) -> tuple[int, str]:
        """Bytes and hash of a file. ``rehash`` ignores a remembered hash. Raises OSError."""
        size, before = size_and_version(path)
        found = None if rehash or self._rehash else self.get(f"hash {path}")
        if found is not None and found[0] == before and size is not None:
            return size, str(found[1])
        digest, size, head = read_stored(path)
        self._head = (path, head)
        is_settled = is_url(path) or os.stat(path).st_mtime < clock.now() - SECONDS_OF_DOUBT
        if before and is_settled and size_and_version(path)[1] == before:
            self.put(f"hash {path}", [before, digest])
        return size, digest

    def open_head(self, path: str) -> IO[bytes]:
        """A stream of at least the first megabyte of a file."""
        return io.BytesIO(self._head[1]) if self._head[0] == path else open_stored(path)

    def get(self, key: str) -> Any:
        """The value stored for a key, or None."""
        if key in self._new:
            return self._new[key]
        row = self._execute(lambda database: database.execute(_SELECT, (key,)).fetchone())
        is_whole = row is not None and row[1] == fingerprint(key, str(row[0]))
        return from_json(row[0]) if is_whole else None

    def put(self, key: str, value: Any) -> None:
        """Store JSON values under a key that names all that they depend on."""
        self._new[key] = value

    def save(self) -> None:
        """Write all new entries, if there is a store to write to."""
        if not self._new or self._path is None or not self._path.parent.is_dir():
            return
        if self._database is None:
            self._open(self._path)
        values = [(key, to_json(value)) for key, value in self._new.items()]
        rows = [(key, value, fingerprint(key, value)) for key, value in values]
        self._execute(lambda database: database.executemany("insert or replace into hints values (?, ?, ?)", rows))
        self._new = {}

    def _open(self, path: Path) -> None:
        with suppress(OSError):  # SQLite reports the reason
            path.touch()  # with the mode of the umask; SQLite would create it writable for the owner alone
        try:
            self._database = sqlite3.connect(path, timeout=30)
        except sqlite3.Error as error:
            self._give_up(path, error)
        else:
            self._database.text_factory = lambda text: text.decode(errors="replace")
            self._execute(lambda database: database.execute(_TABLE))
            self._execute(lambda database: database.execute(_SELECT, ("",)))

    def _execute(self, work: Callable[[sqlite3.Connection], Any]) -> Any:
        """The result of ``work``; None without a database, or if it fails."""
        if self._database is None or self._path is None:
            return None
        try:
            with self._database:
                return work(self._database)
        except _ERRORS as error:
            self._give_up(self._path, error)
        return None

    def _give_up(self, path: Path, error: Exception) -> None:
        """Work without the database from now on. A damaged one is removed, and the next ``save`` makes another."""
        is_damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE
        _log.warning("%s %s: %s", path, "is damaged and made again" if is_damaged else "is not used", error)
        if self._database is not None:
            self._database.close()
        self._database = None
        if is_damaged:
            path.unlink(missing_ok=True)
