"""The copy of a database that a start would migrate."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic.script import ScriptDirectory
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

from lmcore.errors import LMError
from tasks import database

PREFECT_3_8_8 = "a3b9c7d2e5f1"


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    with temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults={PREFECT_SERVER_DATABASE_CONNECTION_URL}):
        yield tmp_path / "prefect.db"


def write(path: Path, revision: str) -> None:
    with closing(sqlite3.connect(path)) as file, file:
        file.execute("create table alembic_version (version_num text)")
        file.execute("create table flow (name text)")
        file.execute("insert into alembic_version values (?)", [revision])
        file.execute("insert into flow values ('mine')")


def names(path: Path) -> list[str]:
    return sorted(found.name for found in path.parent.iterdir())


def test_the_newest_revision_is_the_one_that_alembic_says() -> None:
    folder = database._VERSIONS
    script = ScriptDirectory(str(folder.parents[1]), version_locations=[str(folder)])
    known, newest = database._revisions()
    assert [newest] == script.get_heads()
    assert known == {revision.revision for revision in script.walk_revisions()}


def test_only_its_owner_reads_the_database(path: Path) -> None:
    database.make_private()  # there is none yet
    write(path, PREFECT_3_8_8)
    beside = path.with_name("prefect.db-wal")
    beside.touch(0o644)
    path.chmod(0o644)
    database.make_private()
    assert [file.stat().st_mode & 0o777 for file in (path, beside)] == [0o600, 0o600]


def test_a_database_of_an_older_prefect_is_copied_and_the_line_says_where(path: Path) -> None:
    write(path, PREFECT_3_8_8)
    path.chmod(0o640)
    with closing(sqlite3.connect(path)) as writer:  # that is not closed yet: a part of it is in another file
        writer.execute("pragma journal_mode = wal")
        with writer:
            writer.execute("insert into flow values ('new')")
        line = database.copy_before_upgrade()
    copy = Path(line.rpartition(": ")[2])
    assert copy.parent == path.parent
    assert copy.name.startswith("prefect-before-3.")
    assert copy.stat().st_mode & 0o777 == 0o640
    with closing(sqlite3.connect(copy)) as file:
        assert file.execute("select name from flow").fetchall() == [("mine",), ("new",)]
        assert file.execute("select version_num from alembic_version").fetchall() == [(PREFECT_3_8_8,)]
    assert not list(path.parent.glob("*.tmp"))


def test_nothing_is_copied_where_nothing_is_migrated(path: Path) -> None:
    assert database.copy_before_upgrade() == ""
    write(path, database._revisions()[1])
    assert database.copy_before_upgrade() == ""
    assert names(path) == ["prefect.db"]


@pytest.mark.parametrize("content", [b"", b"no database" * 1000])
def test_a_file_that_is_no_database_is_left_to_prefect(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert database.copy_before_upgrade() == ""
    assert path.read_bytes() == content


def test_a_database_of_a_newer_prefect_is_named_and_left_alone(path: Path) -> None:
    write(path, "0123456789ab")
    with pytest.raises(LMError, match="was written by a newer Prefect than 3"):
        database.copy_before_upgrade()
    assert names(path) == ["prefect.db"]


def test_without_room_for_the_copy_nothing_is_migrated(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, PREFECT_3_8_8)
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(LMError, match=r"cannot be copied to .*No space left"):
        database.copy_before_upgrade()
    assert names(path) == ["prefect.db"]


@pytest.mark.parametrize(
    "url", ["postgresql+asyncpg://prefect@127.0.0.1/prefect", "sqlite+aiosqlite:///:memory:", "sqlite+aiosqlite:///no"]
)
def test_only_a_file_that_is_there_counts(url: str) -> None:
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: url}):
        assert database.database_file() is None


def test_a_path_with_blanks_is_found(tmp_path: Path) -> None:
    path = tmp_path / "my data.db"
    write(path, PREFECT_3_8_8)
    with temporary_settings({PREFECT_SERVER_DATABASE_CONNECTION_URL: f"sqlite+aiosqlite:///{path}"}):
        assert database.database_file() == path
        assert str(path) in database.copy_before_upgrade()
