"""Tables are read by people: in a page, and in a terminal."""

from lmcore.markdown import columns, table


def test_columns_are_as_wide_as_their_widest_cell_and_figures_stand_to_the_right() -> None:
    rows = [{"bytes": "1,234", "path": "runs/a"}, {"bytes": "7", "path": "shards/b"}]
    assert columns(rows).splitlines() == ["bytes  path", "1,234  runs/a", "    7  shards/b"]
    assert columns([]) == ""


def test_a_cell_breaks_no_table() -> None:
    assert table(("a", "b"), [("x|y", "1\n2")]).splitlines()[-1] == r"| x\|y | 1 2 |"
