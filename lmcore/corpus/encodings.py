"""Detect the encoding of text that is not UTF-8, from the first bytes of a file.

Some encodings are valid UTF-8 byte for byte (ISO-2022-JP, UTF-7), and so are NULs and escape sequences of a terminal.
They must not be trained on. A few bad lines are skipped one by one and do not exclude the file.
"""

import codecs
import re

_LEAST_BYTES = 20
"""Fewer bytes do not distinguish encodings."""
_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_KANA = re.compile("[\u3041-\u30fe]")
_UTF7 = re.compile(rb"\+[A-Za-z0-9/+]{3,}-?")
_UTF16_NULS = 0.04
"""Text with this share of NULs is UTF-16. ASCII has one half; Japanese has NULs in spaces, digits and line ends."""
_AS_UTF8 = {"", "UTF-8", "UTF-8-SIG", "ASCII"}
"""Encodings that are detected for text with NULs or bad lines and need no conversion."""
_ESCAPED_LINES = 0.2
_BAD_LINES = 0.2
"""Shares of lines from which the whole file is not UTF-8 text."""
_CONTROLS = bytes([*range(9), *range(14, 32)])
_CONTROL_BYTES = 0.05
"""Bytes in no known encoding with this share of control characters are binary."""


def encoding_problem(head: bytes, is_whole: bool) -> tuple[str, str]:
    """(reason, iconv's name of the encoding) for a head that is not UTF-8 text; two empty strings for text.

    ``is_whole``: the head is the whole file. Otherwise its last character may be incomplete.
    """
    is_wide = head.startswith(_MARKS) or head.count(0) > _UTF16_NULS * len(head)
    if len(head) < _LEAST_BYTES and not head.startswith(_MARKS):
        return "", ""
    if not is_wide and _is_utf8(head, is_whole):
        return _disguised(head)
    if not is_wide and _has_mostly_good_lines(head):
        return "", ""
    name = _japanese(head) or _detected(head)
    if name.upper() in _AS_UTF8:
        if is_wide and _is_utf8(head, is_whole) and _has_few_controls(head.replace(b"\0", b"")):
            return "nul_bytes", ""
        name = ""
    if not name and _has_few_controls(head):
        return "", ""
    return ("other_encoding", name) if name else ("no_text", "")


def _has_few_controls(head: bytes) -> bool:
    return len(head.translate(None, _CONTROLS)) > (1 - _CONTROL_BYTES) * len(head)


def _disguised(head: bytes) -> tuple[str, str]:
    if 27 in head:
        if re.search(rb"\x1b\$[@AB(]|\x1b\([IJ]", head) and head.isascii():
            return "other_encoding", "ISO-2022-JP" if _decodes(head, "iso2022_jp") else "ISO-2022-JP-3"
        lines = [line for line in head.split(b"\n") if line.strip()]
        if sum(b"\x1b" in line for line in lines) > _ESCAPED_LINES * len(lines):
            return "escape_sequences", ""
    if head.isascii() and _UTF7.search(head) and _detected(head).upper() == "UTF-7" and _holds_other_letters(head):
        return "other_encoding", "UTF-7"
    return "", ""


def _holds_other_letters(head: bytes) -> bool:
    """Whether many characters decode to kana in UTF-7. "c++-" and base64 do not."""
    text = head.decode("utf-7", "replace")
    return len(_KANA.findall(text)) > len(text) / 20


def _is_utf8(head: bytes, is_whole: bool) -> bool:
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head, is_whole)
    except UnicodeDecodeError:
        return False
    return True


def _has_mostly_good_lines(head: bytes) -> bool:
    lines = [line for line in head.split(b"\n") if line.strip()]
    bad = sum(not _is_utf8(line, True) for line in lines)
    return bad < _BAD_LINES * len(lines) or 2 * bad < sum(not line.isascii() for line in lines)


def _japanese(head: bytes) -> str:
    """The Japanese encoding of the text, or nothing. Windows writes CP932; iconv's SHIFT_JIS lacks ① and ㈱."""
    for codec, name in (("cp932", "CP932"), ("euc_jp", "EUC-JP")):
        text = head.decode(codec, "replace")
        if len(_KANA.findall(text)) > len(text) / 10 and text.count("\ufffd") <= len(text) / 20:
            return name if name == "CP932" or _decodes(head, codec) else "EUC-JP-MS"
    return ""


def _detected(head: bytes) -> str:
    import chardet  # the import takes 0.1 s, and most corpora are UTF-8

    name = chardet.detect(head)["encoding"] or ""
    return re.sub(r"-(?=[LB]E$)", "", name.upper()) if name.lower().startswith("utf") else name


def _decodes(head: bytes, codec: str) -> bool:
    try:
        codecs.getincrementaldecoder(codec)().decode(head, False)
    except UnicodeDecodeError:
        return False
    return True
