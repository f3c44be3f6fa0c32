"""How a .txt is cut into documents, decided by its first 16 kB: into lines, or into paragraphs between blank lines.

Lines are documents where each one stands alone: sentences, records, logs. Paragraphs are documents where blank lines
separate groups of lines, of which one at least is wrapped or most have several lines, or where all lines are wrapped:
sentences end in mid-line and continue on the next line. Only complete lines of these first bytes count, so a file that
grows beyond them is always cut in the same way.
"""

import re
from itertools import groupby, pairwise

_HEAD_BYTES = 2**14
_LEAST_GROUPS = 3
_LINES_IN_A_GROUP = 1.5
_LEAST_WRAPPED_LINES = 5
_LONGEST_WRAPPED_LINE = 200
"""Characters. Nobody wraps lines at more."""
_FULL = 0.7
"""Share of the widest line from which a line is full."""
_SENTENCE_END = re.compile(r"""[。．！？.!?…]["'」』）)”’]*$""")
_SENTENCE_WITHIN = re.compile(r"""[。！？][」』）]*[^\s」』）。！？]|[.!?]["')”’]* +["'(“‘]?[A-Z]""")
_CONTINUED = re.compile(r"[a-z\u3041-\u30fe\u4e00-\u9fff]")


def kind_of_text(head: bytes, is_whole: bool) -> str:
    """txt (its lines are documents) or paragraphs, the same for every file that begins with these bytes."""
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
    """Whether a sentence goes on in the next line of a group. One is enough: paragraphs of one line are lines too."""
    several = [group for group in groups if len(group) > 1]
    widest = max((len(line) for group in several for line in group), default=0)
    return widest <= _LONGEST_WRAPPED_LINE and any(
        len(line) >= _FULL * widest and not _SENTENCE_END.search(line) and not following[0].isspace()
        for group in several
        for line, following in pairwise(group)
    )


def _are_wrapped(lines: list[str]) -> bool:
    """Whether text flows over the ends of most lines, and these are about as long as each other."""
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
