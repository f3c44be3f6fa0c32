"""Whether the documents of a .txt are its lines or its paragraphs. The first 16 kB of the file decide.

Lines are documents if each stands alone: sentences, records, logs. Paragraphs are documents if blank lines separate
groups of lines, and most groups have several lines or one of them is wrapped; or if all lines are wrapped. In wrapped
text sentences end in mid-line and continue on the next line. Only complete lines of the first bytes count, so a growing
file is always cut in the same way.
"""

import re
from itertools import groupby, pairwise

_HEAD_BYTES = 2**14
_LEAST_GROUPS = 3
_LINES_IN_A_GROUP = 1.5
_LEAST_WRAPPED_LINES = 5
_LONGEST_WRAPPED_LINE = 200
"""Characters. Text is not wrapped at more."""
_FULL = 0.7
"""A line is full if it has this share of the width of the widest line."""
_SENTENCE_END = re.compile(r"""[。．！？.!?…]["'」』）)”’]*$""")
_SENTENCE_WITHIN = re.compile(r"""[。！？][」』）]*[^\s」』）。！？]|[.!?]["')”’]* +["'(“‘]?[A-Z]""")
_CONTINUED = re.compile(r"[a-z\u3041-\u30fe\u4e00-\u9fff]")


def detect_text_kind(head: bytes, is_whole: bool) -> str:
    """txt (lines are documents) or paragraphs; the same for every file that begins with these bytes."""
    is_whole = is_whole and len(head) <= _HEAD_BYTES
    text = head[:_HEAD_BYTES].decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split(r"\n|\r(?:\r?\n)?", text)
    lines = [line.rstrip() for line in (lines if is_whole else lines[:-1])]
    groups = [list(group) for is_filled, group in groupby(lines, bool) if is_filled]
    filled = [line for line in lines if line]
    is_grouped = len(filled) >= _LINES_IN_A_GROUP * len(groups) or _holds_a_wrapped_paragraph(groups)
    if len(groups) >= _LEAST_GROUPS and is_grouped:
        return "paragraphs"
    return "paragraphs" if _are_wrapped(filled) else "txt"


def _holds_a_wrapped_paragraph(groups: list[list[str]]) -> bool:
    """Whether a sentence continues in the next line of a group. One is enough: paragraphs may have one line."""
    several = [group for group in groups if len(group) > 1]
    widest = max((len(line) for group in several for line in group), default=0)
    return widest <= _LONGEST_WRAPPED_LINE and any(
        len(line) >= _FULL * widest and not _SENTENCE_END.search(line) and not following[0].isspace()
        for group in several
        for line, following in pairwise(group)
    )


def _are_wrapped(lines: list[str]) -> bool:
    """Whether text flows over the ends of most lines and these are about equally long."""
    if len(lines) < _LEAST_WRAPPED_LINES:
        return False
    widest = max(map(len, lines))
    full = sum(len(line) >= _FULL * widest for line in lines)
    ended = sum(bool(_SENTENCE_END.search(line)) for line in lines)
    within = sum(bool(_SENTENCE_WITHIN.search(line)) for line in lines)
    continued = sum(bool(_CONTINUED.match(line)) for line in lines)
    return (
        widest <= _LONGEST_WRAPPED_LINE
        and full >= 0.6 * len(lines)
        and ended <= 0.5 * len(lines)
        and within >= 0.2 * len(lines)
        and continued >= 0.3 * len(lines)
    )
