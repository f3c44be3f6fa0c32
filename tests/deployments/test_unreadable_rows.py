"""Rows with half of a character: found and fixed, everything else left as it is."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_HOME, PREFECT_SERVER_DATABASE_CONNECTION_URL, temporary_settings

from deployments.doctor.database_rows import fix_database, unreadable_rows

LONE = "a\ud83d"
WHOLE = {"名前": "😀", "escaped": r"\ud83d", "list": [1.5, None, True]}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "prefect.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("create table flow_run (id text, parameters JSON, tags JSON, name text)")
        database.execute("create table automation_bucket (last_event JSON)")
    with temporary_settings({PREFECT_HOME: tmp_path}, restore_defaults={PREFECT_SERVER_DATABASE_CONNECTION_URL}):
        yield path


def write(path: Path, table: str, *values: Any) -> None:
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"insert into {table} values ({', '.join('?' * len(values))})", values)


def read(path: Path, table: str) -> list[Any]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute(f"select * from {table}").fetchall()


def test_whole_text_is_left_alone(path: Path) -> None:
    write(path, "flow_run", "1", json.dumps(WHOLE), r"no JSON \ud83d", r"\ud83d")
    before = path.read_bytes()
    assert not unreadable_rows().remedy
    assert fix_database() == ""
    assert path.read_bytes() == before


def test_half_of_a_character_is_found_named_and_replaced(path: Path) -> None:
    write(path, "flow_run", "whole", json.dumps(WHOLE), "[]", "")
    write(path, "flow_run", "broken", json.dumps({LONE: [LONE, WHOLE]}), json.dumps(["\udc00b"]), "")
    write(path, "automation_bucket", json.dumps({"text": LONE}))
    finding = unreadable_rows()
    assert "parameters of the flow run broken" in finding.fact
    assert "tags of the flow run broken" in finding.fact
    assert "last_event of the automation bucket 1" in finding.fact
    assert "flow run whole" not in finding.fact
    assert fix_database().endswith("� stands in its place now")
    whole, broken = read(path, "flow_run")
    assert json.loads(whole[1]) == WHOLE
    assert json.loads(broken[1]) == {"a�": ["a�", WHOLE]}
    assert json.loads(broken[2]) == ["�b"]
    assert json.loads(read(path, "automation_bucket")[0][0]) == {"text": "a�"}
    assert not unreadable_rows().remedy


def test_many_rows_are_counted(path: Path) -> None:
    for number in range(5):
        write(path, "flow_run", str(number), json.dumps(LONE), "[]", "")
    assert unreadable_rows().fact.endswith("and 2 more")


def test_a_file_that_is_no_database_is_said(path: Path) -> None:
    path.write_bytes(b"no database" * 1000)
    assert "cannot be read: file is not a database" in unreadable_rows().fact
    assert fix_database() == ""


def test_no_database_is_nothing_wrong(path: Path) -> None:
    path.unlink()
    assert not unreadable_rows().remedy
