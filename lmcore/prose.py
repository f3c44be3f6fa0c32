"""How a .txt is cut into documents, decided by its first 16 kB: into lines, or into paragraphs between blank lines.

Lines are documents where each one stands alone: sentences, records, logs. Paragraphs are documents where blank lines
separate groups of lines, or where lines are wrapped: sentences end in mid-line and continue on the next line. Only
complete lines of these first bytes count, so a file that grows beyond them is always cut in the same way.
"""

import re

_HEAD_BYTES = 2**14
_LEAST_GROUPS = 3
_LINES_IN_A_GROUP = 1.5
_LEAST_WRAPPED_LINES = 5
_LONGEST_WRAPPED_LINE = 200
"""Characters. Nobody wraps lines at more."""
_SENTENCE_END = re.compile(r"""[。．！？.!?…]["'」』）)”’]*$""")
_SENTENCE_WITHIN = re.compile(r"""[。！？][」』）]*[^\s」』）。！？]|[.!?]["')”’]* +["'(“‘]?[A-Z]""")
_CONTINUED = re.compile(r"[a-z\u3041-\u30fe\u4e00-\u9fff]")


def kind_of_text(head: bytes, is_whole: bool) -> str:
    """txt (its lines are documents) or paragraphs, the same for every file that begins with these bytes."""
    is_whole = is_whole and len(head) <= _HEAD_BYTES
    text = head[:_HEAD_BYTES].decode("utf-8", "replace").removeprefix("\ufeff")
    lines = re.split(r"\n|\r(?:\r?\n)?", text)
    lines = [line.rstrip() for line in (lines if is_whole else lines[:-1])]
    groups = _groups(lines)
    filled = [line for line in lines if line]
    if len(groups) >= _LEAST_GROUPS and len(filled) >= _LINES_IN_A_GROUP * len(groups):
        return "paragraphs"
    return "paragraphs" if _are_wrapped(filled) else "txt"


def _groups(lines: list[str]) -> list[str]:
    """The first lines of the groups that blank lines part."""
    return [line for before, line in zip(["", *lines], lines, strict=False) if line and not before]


def _are_wrapped(lines: list[str]) -> bool:
    """Whether text flows over the ends of most lines, and these are about as long as each other."""
    if len(lines) < _LEAST_WRAPPED_LINES:
        return False
    widest = max(map(len, lines))
    full = sum(len(line) >= 0.7 * widest for line in lines)
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
