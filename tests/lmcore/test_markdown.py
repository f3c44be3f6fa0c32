"""Tables are read by people: in a page, and in a terminal."""

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from lmcore.markdown import bold, code, columns, escape, fenced, number, table


def test_columns_are_as_wide_as_their_widest_cell_and_figures_stand_to_the_right() -> None:
    rows = [{"bytes": "1,234", "path": "runs/a"}, {"bytes": "7", "path": "shards/b"}]
    assert columns(rows).splitlines() == ["bytes  path", "1,234  runs/a", "    7  shards/b"]
    assert columns([]) == ""


def test_a_japanese_character_is_two_columns_wide() -> None:
    rows = [{"text": "百科", "documents": "12"}, {"text": "all", "documents": "345"}]
    assert columns(rows).splitlines() == ["text  documents", "百科         12", "all         345"]


def test_a_cell_breaks_no_table() -> None:
    assert table(("a", "b"), [("x|y", "1\n2")]).splitlines()[-1] == r"| x\|y | 1 2 |"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("max_steps", "max_steps"),
        ("__init__", r"\_\_init\_\_"),
        ("*bold* `code` <b> [a](b) ~x~ a|b \\", r"\*bold\* \`code\` \<b\> \[a\](b) \~x\~ a\|b \\"),
        ("&lt; & &#60;", r"\&lt; & \&#60;"),
        ("gpt2-4x192-0123", "gpt2-4x192-0123"),
        ("日本語_です\n# no heading", "日本語_です # no heading"),
        ("http://a.b www.a.b me@a.b", "http:\u2060//a.b www\u2060.a.b me\u2060@a.b"),
    ],
)
def test_a_value_is_shown_as_it_is(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_a_cell_may_be_markup_where_that_is_said() -> None:
    assert table(("a",), [(bold("x*y"),), ("**x**",)]).splitlines()[2:] == [r"| **x\*y** |", r"| \*\*x\*\* |"]


@pytest.mark.parametrize(("text", "span"), [("a", "`a`"), ("a`b", "``a`b``"), ("`", "`` ` ``"), ("'x'", "`'x'`")])
def test_a_code_span_holds_anything(text: str, span: str) -> None:
    assert code(text) == span


_PARTS = [*"`|\\<>[]()*_#a \n\r\0\u2028", "```", "~~~", "    ", "\n\n", "![r]", "&lt;", "http://a.b", "www.a.b"]
_PARTS.extend(["![x](http://a.b/i.png)", "<img src=http://a.b/i.png>", "[r]: http://a.b/i.png", "javascript:x"])
_TEXTS = st.lists(st.sampled_from(_PARTS), max_size=8).map("".join)


def _inline(text: str) -> str:
    return f"# {escape(text)}\n\n{escape(text)}\n\nin {code(text)} {bold(text)} {escape(text)}."


@pytest.mark.parametrize("shown", [_inline, fenced, lambda text: table(("a",), [(text,)])])
@given(text=_TEXTS)
def test_no_text_becomes_a_picture_a_link_or_html(shown: Callable[[str], str], text: str) -> None:
    tokens = MarkdownIt("commonmark").enable("table").parse(f"before\n\n{shown(text)}\n\nafter\n")
    inside = [each for token in tokens for each in [token, *(token.children or [])]]
    assert not {"image", "link_open", "html_inline", "html_block"} & {each.type for each in inside}
    assert not [each for each in inside if each.type == "text" and re.search("://|www[.]", each.content)]


def test_a_figure_that_is_none_is_said_in_words() -> None:
    words = [number(figure, ",.2f") for figure in (1234.5, math.nan, math.inf, -math.inf)]
    assert words == ["1,234.50", "not a number", "infinite", "minus infinite"]
    assert table(("a",), [(math.nan,), (1.5,)]).splitlines()[2:] == ["| not a number |", "| 1.5 |"]
