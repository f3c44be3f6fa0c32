"""What is known of unchanged files, so that they are not read again: hints in a small SQLite file.

Losing it costs time, never a result: every row has a checksum and says which version of a file (size, time, inode;
ETag) it speaks of, or is named by content. ``--rehash`` ignores the hashes.
"""

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from lmcore import clock
from lmcore.corpus.remote import SECONDS_OF_DOUBT, hash_stored, is_url, version
from lmcore.errors import FileChangedError
from lmcore.settings.section import fingerprint
from lmcore.store.strict_json import from_json, to_json

_TABLE = "create table if not exists hints (key text primary key, value text, checksum text)"
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR}
"""The last one: its table has other columns. Any other code is of the system: memory, permission, a full disk."""
_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_log = logging.getLogger(__name__)


class HashIndex:
    """Remembers hashes by path and outlines by key. Nothing is written before ``save``."""

    def __init__(self, store: Path, rehash: bool = False) -> None:
        self._path = store / "index.sqlite"
        self._rehash = rehash
        self._new: dict[str, Any] = {}
        self._database: sqlite3.Connection | None = None
        if self._path.exists():
            self._open()

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
        found = None if self._rehash else self._get(f"hash {path}")
        if found is not None and found[0] == now:
            return str(found[1])
        digest = hash_stored(path)
        is_settled = is_url(path) or os.stat(path).st_mtime < clock.now() - SECONDS_OF_DOUBT
        if now and is_settled and version(path) == now:
            self._new[f"hash {path}"] = [now, digest]
        return digest

    def corrected(self, path: str, digest: str) -> str | None:
        """The hash of a file that was edited so that size, time and inode still are those of the hash remembered.

        None when ``digest`` is not what is remembered of the file as it is now: then it has simply changed.
        """
        try:
            if self._get(f"hash {path}") != [version(path), digest]:
                return None
            now = hash_stored(path)
        except (FileChangedError, FileNotFoundError, IsADirectoryError, PermissionError):
            return None
        self._new[f"hash {path}"] = [version(path), now]
        return None if now == digest else now

    def known(self, key: str, make: Callable[[], Any]) -> Any:
        """What was made under this key before, or now. ``key`` must name all that ``make`` depends on."""
        found = self._get(key)
        if found is None:
            self._new[key] = found = make()
        return found

    def outline(self, key: str) -> Any:
        """What ``remember`` was given for the key, or None."""
        return self._get(f"outline {key}")

    def remember(self, key: str, outline: Any) -> None:
        self._new[f"outline {key}"] = outline

    def save(self) -> None:
        """Write what is new, if there is a store to write to."""
        if not self._new or not self._path.parent.is_dir():
            return
        if self._database is None:
            self._open()
        values = [(key, to_json(value)) for key, value in self._new.items()]
        self._new = {}
        if self._database is None:
            return
        try:
            with self._database:
                rows = [(key, value, fingerprint(key, value)) for key, value in values]
                self._database.executemany("insert or replace into hints values (?, ?, ?)", rows)
        except _ERRORS as error:
            self._give_up(error)

    def _open(self) -> None:
        """Open the database, made anew if it is damaged; where it cannot be used, go on without."""
        for _ in range(2):
            with suppress(OSError):  # of which SQLite says more
                self._path.touch()  # by the umask; SQLite would create it for its owner's writing alone
            try:
                self._database = sqlite3.connect(self._path, timeout=30)
                self._database.text_factory = lambda text: text.decode(errors="replace")
                self._database.execute(_TABLE)
                self._database.execute("select key, value, checksum from hints limit 0")
                return
            except _ERRORS as error:
                if not self._give_up(error):
                    return

    def _give_up(self, error: Exception) -> bool:
        """Go on without the database; True if it was damaged, and is to be made again."""
        is_damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF in _DAMAGE
        _log.warning("%s %s: %s", self._path, "is damaged and made again" if is_damaged else "is not used", error)
        if self._database is not None:
            self._database.close()
        self._database = None
        if is_damaged:
            self._path.unlink(missing_ok=True)
        return is_damaged

    def _get(self, key: str) -> Any:
        if key in self._new:
            return self._new[key]
        if self._database is None:
            return None
        try:
            row = self._database.execute("select value, checksum from hints where key = ?", (key,)).fetchone()
        except _ERRORS as error:
            self._give_up(error)
            return None
        is_whole = row is not None and row[1] == fingerprint(key, str(row[0]))
        return from_json(row[0]) if is_whole else None
