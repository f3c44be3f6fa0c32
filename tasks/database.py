"""The SQLite database of a Prefect server on this machine, before a server of this version opens it.

A newer server migrates the database at its first start, and an older one cannot open the result. So the file is copied
first.
"""

import re
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import unquote

import prefect
from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL

from lmcore import clock
from lmcore.errors import LMError

_SQLITE = "sqlite+aiosqlite:///"
_VERSIONS = Path(prefect.__file__).parent / "server" / "database" / "_migrations" / "versions" / "sqlite"
_REVISION = re.compile(r"""^(down_)?revision\b.*?=\s*["'](\w+)["']""", re.MULTILINE)


def database_file() -> Path | None:
    """The database that a server on this machine opens. None if it is missing, in memory or elsewhere."""
    url = str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value())
    path = Path(unquote(url.removeprefix(_SQLITE).partition("?")[0]))
    return path if url.startswith(_SQLITE) and path.is_file() else None


def make_private() -> None:
    """Let only its owner read the database, whatever an earlier start did: logs and parameters are in it."""
    if path := database_file():
        for file in (path, *path.parent.glob(f"{path.name}-*")):
            with suppress(OSError):  # another user's, or gone
                file.chmod(0o600)


def copy_before_upgrade() -> str:
    """Copy the database beside itself if an older Prefect wrote it. Returns a line about it, else an empty text.

    Raises LMError when a newer Prefect wrote it, or when there is no room for the copy.
    """
    if not (path := database_file()) or not (found := _revision(path)):
        return ""
    known, newest = _revisions()
    if found == newest:
        return ""
    if found not in known:
        raise LMError(
            f"{path} was written by a newer Prefect than {prefect.__version__} (revision {found}): install that one, "
            "or put the copy in its place that was made before the upgrade"
        )
    copy = path.with_name(f"{path.stem}-before-{prefect.__version__}-{clock.utc():%Y%m%dT%H%M%SZ}{path.suffix}")
    _copy(path, copy)
    return f"{path} is of an older Prefect, which cannot open it after this start. A copy for going back: {copy}"


def _revision(path: Path) -> str:
    """The revision of the database; empty if it has none."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
            return str(next(database.execute("select version_num from alembic_version"), [""])[0])
    except sqlite3.Error:
        return ""


def _revisions() -> tuple[set[str], str]:
    """The revisions that this Prefect knows, and the newest of them. Alembic itself takes seconds for this."""
    revisions: set[str] = set()
    followed: set[str] = set()
    for file in _VERSIONS.glob("*.py"):
        for is_before, revision in _REVISION.findall(file.read_text(encoding="utf-8")):
            (followed if is_before else revisions).add(revision)
    [newest] = revisions - followed
    return revisions, newest


def _copy(path: Path, copy: Path) -> None:
    """Copy the database consistently, even while a server writes, with the permissions of the original."""
    half = copy.with_suffix(".tmp")
    try:
        with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(half)) as target:
            half.chmod(path.stat().st_mode & 0o777)
            source.backup(target)
        half.replace(copy)
    except (OSError, sqlite3.Error) as error:
        half.unlink(missing_ok=True)
        raise LMError(
            f"{path} is of an older Prefect and cannot be copied to {copy} before its upgrade: {error}. Make room "
            "there, or move the file away to begin with an empty database"
        ) from None
