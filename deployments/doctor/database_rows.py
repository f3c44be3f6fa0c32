r"""Rows of a Prefect server's SQLite database that contain half of a character, which the server cannot show.

A browser that cuts an emoji in two sends a lone surrogate. The settings here refuse it, but tags, states and the
parameters of other flows do not. SQLite stores it as ``\ud83d`` in JSON, and every page with the row answers 500.
"""

import json
import re
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from deployments.doctor import Finding
from tasks.database import database_file

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SECONDS_TO_WAIT = 60
"""Seconds to wait for a server that is writing."""
_COLUMNS = """
    select t.name, c.name, max(k.name = 'id') from sqlite_master t
    join pragma_table_info(t.name) c join pragma_table_info(t.name) k
    where t.type = 'table' and c.type = 'JSON' group by t.name, c.name
"""
_Broken = tuple[str, str, int, str]
"""Table, column, row, and the JSON value with U+FFFD in place of each half of a character."""


def unreadable_rows() -> Finding:
    """Whether the database of this machine has such rows. The server may run."""
    if not (path := database_file()):
        return Finding("database", "there is no SQLite database of a Prefect server on this machine")
    try:
        found = _broken_values(path)
    except sqlite3.Error as error:
        return Finding("database", f"{path} cannot be read: {error}", "restore a copy of it, or move it away")
    if not found:
        return Finding("database", f"{path}: every row can be shown")
    words = "; ".join([*found][:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
    fact = f"{path}: half of a character, for which the server answers 500, in {words}"
    return Finding("database", fact, "--fix puts � in its place", partial(_fix, path, found.values()))


def fix_database() -> str:
    """Fix such rows. Returns a line that names them; empty if there are none."""
    finding = unreadable_rows()
    if not finding.fix:
        return ""
    finding.fix()
    return f"{finding.fact}: � stands in its place now"


def _broken_values(path: Path) -> dict[str, _Broken]:
    """Broken values by a name for people: the column, the table and the id of the row."""
    found = {}
    with closing(sqlite3.connect(path, timeout=_SECONDS_TO_WAIT)) as database:
        for table, column, has_id in database.execute(_COLUMNS).fetchall():
            name = "id" if has_id else "rowid"
            query = f'select rowid, {name}, "{column}" from "{table}" where "{column}" like ?'
            for row, identifier, text in database.execute(query, [r"%\ud%"]):
                if fixed := _fixed(text):
                    found[f"{column} of the {table.replace('_', ' ')} {identifier}"] = table, column, row, fixed
    return found


def _fixed(text: Any) -> str:
    """The JSON text with U+FFFD for lone surrogates; empty if it has none."""
    try:
        plain = json.dumps(json.loads(text), ensure_ascii=False)
    except (ValueError, TypeError):
        return ""
    fixed = _SURROGATE.sub("\ufffd", plain)
    return "" if fixed == plain else json.dumps(json.loads(fixed))


def _fix(path: Path, values: Iterable[_Broken]) -> None:
    with closing(sqlite3.connect(path, timeout=_SECONDS_TO_WAIT)) as database, database:
        for table, column, row, fixed in values:
            database.execute(f'update "{table}" set "{column}" = ? where rowid = ?', [fixed, row])
