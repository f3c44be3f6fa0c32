"""Paths and patterns as a person writes them: globs, ~, ``stdlib:``, brackets in names, and Unicode forms."""

import errno
import fnmatch
import glob
import os
import re
import sysconfig
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

from lmcore.errors import CorpusError, MissingTextError
from lmcore.settings.config import STANDARD_LIBRARY


def name_matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A function that tells whether a name matches one of the patterns, ignoring case and Unicode form."""
    match = re.compile("|".join(fnmatch.translate(_normalized(pattern)) for pattern in patterns) or "(?!)").match
    return lambda name: match(_normalized(name)) is not None


def _normalized(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def expand(entry: str, setting: str) -> list[Path]:
    """The files and folders that a path names or a glob matches. Raises CorpusError if there is none."""
    if entry == STANDARD_LIBRARY:
        return [Path(sysconfig.get_path("stdlib"))]
    if not entry:
        raise CorpusError(f"{setting}: one of the paths is empty; the current folder is '.'")
    path = os.path.expanduser(entry)
    try:
        os.stat(path)
        return [Path(path)]
    except (OSError, ValueError) as error:
        if getattr(error, "errno", None) not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            reason = getattr(error, "strerror", None) or str(error)
            raise CorpusError(f"{setting}: {entry}: {reason[0].lower()}{reason[1:]}") from error
    literal, rest = _split_literal(path)
    if not rest and os.path.exists(literal):
        return [Path(literal)]
    patterns = {os.path.join(glob.escape(literal), unicodedata.normalize(form, rest)) for form in ("NFC", "NFD")}
    matches = {match for pattern in patterns for match in glob.glob(pattern, recursive=True)}
    found = [Path(match) for match in sorted(matches) if os.path.exists(match)]  # glob finds dangling links too
    if not found:
        raise MissingTextError(f"{setting}: {entry} does not exist (looked in {Path.cwd()})")
    return found


def _split_literal(path: str) -> tuple[str, str]:
    """The existing folders at the start of a path, whose brackets are literal, and the rest, which is a pattern.

    A name that exists in another Unicode form counts as existing: macOS writes が as two characters.
    """
    names = path.split(os.sep)
    done = os.sep if path.startswith(os.sep) else ""
    for number, name in enumerate(names):
        here = os.path.join(done, name)
        if not os.path.lexists(here):
            other = _in_another_form(done or ".", name)
            if other is None:
                return done, os.path.join(*names[number:])
            here = os.path.join(done, other)
        done = here
    return done, ""


def _in_another_form(folder: str, name: str) -> str | None:
    if name.isascii() or not os.path.isdir(folder):
        return None
    wanted = unicodedata.normalize("NFC", name)
    return next((other for other in os.listdir(folder) if unicodedata.normalize("NFC", other) == wanted), None)
