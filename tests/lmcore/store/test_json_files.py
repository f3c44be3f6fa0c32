"""A crash while a line is appended costs that line, and no other line is lost or joined."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.errors import StoreError
from lmcore.store.json_files import append_line, read_lines, write_lines

ROWS = st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers(-9, 9)), max_size=4)


@given(rows=ROWS, data=st.data())
def test_a_line_that_a_crash_tore_is_left_out_and_overwritten(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    for row in rows:
        append_line(path, row)
    content = path.read_bytes() if rows else b""
    torn = json.dumps({"torn": "日本"}, ensure_ascii=False).encode()
    cut = data.draw(st.integers(0, len(torn)))
    path.write_bytes(content + torn[:cut])
    kept = [*rows, {"torn": "日本"}] if cut == len(torn) else rows
    assert read_lines(path) == kept
    append_line(path, {"next": 1}, synced=False)
    assert read_lines(path) == [*kept, {"next": 1}]
    assert len(path.read_bytes().split(b"\n")) == len(kept) + 2


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_damaged_line_is_named_unless_it_may_be_skipped(tmp_path: Path, line: int) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"row": number} for number in range(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = b"{\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(StoreError, match=rf"rows.jsonl is damaged in line {line + 1}: .*Restore the file"):
        read_lines(path)
    assert [row["row"] for row in read_lines(path, skip_damaged=True)] == [n for n in range(3) if n != line]


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "rows.jsonl") == []
