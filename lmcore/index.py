"""What is known of unchanged files, so that they are not read again: hints in a small SQLite file.

Losing it costs time, never a result: every row says which version of a file (size, time, inode; ETag) it speaks
of, and rows about cut files are named by content. ``--rehash`` ignores the hashes.
"""

import json
import logging
import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Self

from lmcore.remote import SECONDS_OF_DOUBT, hash_stored, is_url, version

_TABLES = """
create table if not exists hashes (path text primary key, version text, hash text);
create table if not exists outlines (key text primary key, outline text);
"""
_log = logging.getLogger(__name__)


class Index:
    """Remembers hashes by path and outlines by key. Nothing is written before ``save``."""

    def __init__(self, store: Path, rehash: bool = False) -> None:
        self._path = store / "index.sqlite"
        self._rehash = rehash
        self._hashes: dict[str, tuple[str, str]] = {}
        self._outlines: dict[str, Any] = {}
        self._database = self._open() if self._path.exists() else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.save()
        if self._database is not None:
            self._database.close()

    def hash_of(self, path: str | Path) -> str:
        """``hash_stored``, or what it was when this version of the file was hashed. Raises OSError."""
        path = str(path)
        now = version(path)
        found = None if self._rehash else self._get("select version, hash from hashes where path = ?", path)
        if found is not None and found[0] == now:
            return str(found[1])
        digest = hash_stored(path)
        is_settled = is_url(path) or os.stat(path).st_mtime < time.time() - SECONDS_OF_DOUBT
        if now and is_settled and version(path) == now:
            self._hashes[path] = (now, digest)
        return digest

    def outline(self, key: str) -> Any:
        """What ``remember`` was given for the key, or None."""
        found = self._get("select outline from outlines where key = ?", key)
        return None if found is None else json.loads(found[0])

    def remember(self, key: str, outline: Any) -> None:
        self._outlines[key] = outline

    def save(self) -> None:
        """Write what is new, if there is a store to write to."""
        if not (self._hashes or self._outlines) or not self._path.parent.is_dir():
            return
        self._database = self._database or self._open()
        try:
            with self._database:
                rows = [(path, *row) for path, row in self._hashes.items()]
                self._database.executemany("insert or replace into hashes values (?, ?, ?)", rows)
                outlines = [(key, json.dumps(outline)) for key, outline in self._outlines.items()]
                self._database.executemany("insert or replace into outlines values (?, ?)", outlines)
        except sqlite3.Error as error:
            _log.warning("%s is not kept up to date: %s", self._path, error)
        self._hashes, self._outlines = {}, {}

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise
            _log.warning("%s is damaged and made again: %s", self._path, error)
            self._path.unlink(missing_ok=True)
            return self._connect()

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=30)
        database.executescript(_TABLES)
        return database

    def _get(self, query: str, key: str) -> Any:
        if self._database is None:
            return None
        try:
            return self._database.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            _log.warning("%s cannot be read: %s", self._path, error)
            return None
