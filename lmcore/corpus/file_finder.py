"""Which files below the given paths are read.

Paths are files, folders, globs, URLs, ``stdlib:`` and ~. Files are chosen by name, ignoring case and Unicode form.
Folders that hold a program's own files (a store, a model, a virtual environment) are left out. Every file that is not
read is counted.
"""

import errno
import fnmatch
import glob
import json
import os
import re
import stat
import sysconfig
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lmcore.corpus.detection import HEAD_BYTES, foreign_format
from lmcore.corpus.formats import advice, suffix_of
from lmcore.corpus.ledger import Skip, counted, printable
from lmcore.corpus.remote import remote_files
from lmcore.errors import CorpusError, MissingTextError
from lmcore.settings.config import STANDARD_LIBRARY, CorpusConfig
from lmcore.settings.urls import file_name, is_url
from lmcore.store.allowed_paths import check_allowed

_CODE_FOLDERS = {"__pycache__": "compiled Python", "node_modules": "packages of node"}
# What a folder is, files, folders and endings that it has, and keys of the JSON object in the first file.
_PROGRAM_FOLDERS: tuple[tuple[str, tuple[str, ...], set[str]], ...] = (
    ("a store of this program", ("format.json",), {"format_version"}),
    ("a part of a store of this program", ("manifest.json",), {"kind", "files"}),
    ("a training run", ("config.json", "metrics.jsonl"), set()),
    ("an exported model", ("config.json", "*.safetensors"), set()),
    ("an exported model", ("config.json", "*.gguf"), set()),
    ("a virtual environment", ("pyvenv.cfg",), set()),
    ("a Prefect home", ("prefect.db",), set()),
    ("a Prefect home", ("profiles.toml", "storage/"), set()),
    ("a git repository's own folder", ("HEAD", "objects/", "refs/"), set()),
)
_COUNTED_FOLDERS = {*_CODE_FOLDERS.values(), "hidden", "a git repository's own folder"}
"""These folders are counted in the log; all others are named."""
_PROGRAMS = {"a", "dll", "dylib", "exe", "lib", "o", "pyc", "pyd", "so", "whl"}
_LONGEST_PATH = 4095
_SHOWN = 5


@dataclass
class UnreadFiles:
    """The files in the given folders that are not read."""

    files: int = 0
    """All of them, hidden and excluded ones included."""
    by_suffix: dict[str, list[int]] = field(default_factory=dict)
    """[files, bytes] of files that no pattern of corpus.include matches."""
    folders: dict[str, str] = field(default_factory=dict)
    """Each folder that is left out, and what it is."""

    @property
    def bytes(self) -> int:
        """Bytes of the files in ``by_suffix`` that may hold text."""
        return sum(size for suffix, (_, size) in self.by_suffix.items() if suffix not in _PROGRAMS)

    def add(self, path: str, size: int) -> None:
        """Count a file that no pattern matches."""
        row = self.by_suffix.setdefault(suffix_of(file_name(path)), [0, 0])
        row[0] += 1
        row[1] += size

    def summary(self) -> str:
        """Counts by suffix, the largest first; empty if there are none."""
        rows = sorted(self.by_suffix.items(), key=lambda row: (-row[1][1], row[0]))
        parts = [f"{files:,} {f'.{suffix}' if suffix else 'without suffix'}" for suffix, (files, _) in rows]
        return ", ".join(parts[:_SHOWN] + [f"{len(parts) - _SHOWN} other suffixes"] * (len(parts) > _SHOWN))

    def folder_summary(self) -> list[str]:
        """One line for all folders that are counted, and one for each of the first folders of every other kind."""
        kinds: dict[str, list[str]] = {}
        for path, what in sorted(self.folders.items()):
            kinds.setdefault(what, []).append(path)
        counts = [f"{len(paths):,} ({what})" for what, paths in kinds.items() if what in _COUNTED_FOLDERS]
        lines = [f"folders left out: {', '.join(counts)}"] * bool(counts)
        for what in sorted(kinds.keys() - _COUNTED_FOLDERS):
            lines += [f"{printable(path)} is left out: it is {what}" for path in kinds[what][:_SHOWN]]
            more = len(kinds[what]) - _SHOWN
            lines += [f"{counted(more, 'more folder')} of this kind left out: {what}"] * (more > 0)
        return lines


class FileFinder:
    """Finds the files to read, counts the others, and collects those that cannot be examined in ``skipped``."""

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        self._is_included, self._is_excluded = _name_matcher(config.include), _name_matcher(config.exclude)
        self._largest = (0, "")
        """Bytes and path of the largest file that no pattern matches."""
        self.unread = UnreadFiles()
        self.skipped: list[Skip] = []

    def find(self, paths: list[str], setting: str) -> dict[str, str]:
        """Real path -> path as found. A file that two paths lead to is read once; a link keeps its own name."""
        before = self.unread.files
        found = dict(self._files(paths, setting))
        if paths and not found and not self.skipped:
            raise MissingTextError(f"{setting}: {self._no_file(paths, self.unread.files - before)}")
        return dict(sorted(found.items()))

    def check(self, paths: list[str], setting: str) -> None:
        """Raise the error of ``find`` for local paths without a file to read; the search ends at the first file."""
        for path in paths:
            if not is_url(path):
                _expand(path, setting)
        if not any(map(is_url, paths)) and next(self._files(paths, setting), None) is None:
            FileFinder(self._config).find(paths, setting)

    def _files(self, paths: list[str], setting: str) -> Iterator[tuple[str, str]]:
        for entry in paths:
            if is_url(entry):
                yield from ((url, url) for url in self._remote(entry, setting))
                continue
            for path in _expand(entry, setting):
                check_allowed(path, setting)
                if path.is_dir():
                    yield from ((os.path.realpath(file), file) for file in self._walk(path, setting))
                elif not stat.S_ISREG(path.stat().st_mode):
                    raise CorpusError(f"{setting}: {path} is neither a file nor a folder")
                else:
                    self._check_included(str(path), setting)
                    yield os.path.realpath(path), os.path.abspath(path)

    def _no_file(self, paths: list[str], unread: int) -> str:
        places = ", ".join(paths)
        for path, what in self.unread.folders.items():
            if os.path.abspath(os.path.expanduser(paths[0])) == path:
                return f"{places} is {what}, whose files are not read as text. Give the folder that holds the texts"
        kinds = f": {words}" if (words := self.unread.summary()) else ""
        others = f"{counted(unread, 'other file')} there{kinds}"
        message = f"no file in {places} matches corpus.include {self._config.include} ({others})"
        path = self._largest[1]
        reason = "" if not path or is_url(path) else _format_of(path)
        return f"{message}. {path} is {advice(reason, path)}" if reason else message

    def _remote(self, entry: str, setting: str) -> Iterator[str]:
        check_allowed(entry, setting)
        for url, below in remote_files(entry, setting).items():
            check_allowed(url, setting)
            if not below:
                self._check_included(url, setting)
            elif any(map(self._leaves_out, (file_name(url), *below.split("/")[:-1]))):
                self.unread.files += 1
                continue
            elif not self._is_included(file_name(url)):
                self._count_unread(url, 0)
                continue
            yield url

    def _count_unread(self, path: str, size: int) -> None:
        self.unread.files += 1
        self.unread.add(path, size)
        self._largest = max(self._largest, (size, path))

    def _check_included(self, path: str, setting: str) -> None:
        name = file_name(path)
        if not self._is_included(name):
            reason = "" if is_url(path) else _format_of(path)
            if reason:
                raise CorpusError(f"{setting}: {path} is {advice(reason, path)}")
            raise CorpusError(
                f"{setting}: {name} matches none of corpus.include {self._config.include}: "
                f"if it is plain text, add --corpus.include '*{Path(name).suffix or name}'"
            )

    def _walk(self, folder: Path, setting: str) -> Iterator[str]:
        """The files to read below a folder. Links are followed, each folder is visited once."""
        visited = set()
        for root, folders, names in os.walk(folder.absolute(), followlinks=True, onerror=self._skip_unreadable):
            identity = os.stat(root)
            if (identity.st_dev, identity.st_ino) in visited:
                folders.clear()
                continue
            visited.add((identity.st_dev, identity.st_ino))
            check_allowed(root, setting)
            if what := _program_folder(root, folders, names):
                self.unread.folders[root] = what
                folders.clear()
                continue
            self.unread.folders |= {os.path.join(root, name): "hidden" for name in folders if name.startswith(".")}
            folders[:] = sorted(name for name in folders if not self._leaves_out(name))
            for name in names:
                path = os.path.join(root, name)
                if self._is_chosen(name, path) and self._is_readable(path):
                    if os.path.islink(path):
                        check_allowed(path, setting)
                    yield path

    def _is_chosen(self, name: str, path: str) -> bool:
        if self._leaves_out(name):
            self.unread.files += 1
            return False
        if not self._is_included(name):
            self._count_unread(path, _size(path))
            return False
        return True

    def _is_readable(self, path: str) -> bool:
        """Whether the path is a file whose name can be stored; if not, it is skipped."""
        shown, reason = path, ""
        if re.search("[\ud800-\udfff]", path):
            shown, reason = repr(os.fsencode(path)), "name_is_no_utf8"
        elif len(os.fsencode(path)) > _LONGEST_PATH:
            reason = "path_too_long"
        elif not os.path.isfile(path):
            is_annexed = os.path.islink(path) and "/annex/objects/" in os.readlink(path)
            reason = "git_annex_pointer" if is_annexed else "not_a_file"
        if reason:
            self.skipped.append(Skip(shown, 0, 0, reason, stored=_size(path)))
        return not reason

    def _leaves_out(self, name: str) -> bool:
        return name.startswith(".") or self._is_excluded(name)

    def _skip_unreadable(self, error: OSError) -> None:
        self.skipped.append(Skip(str(error.filename), 0, 0, "unreadable"))


def _program_folder(path: str, folders: list[str], names: list[str]) -> str:
    """What a folder is that a program keeps for itself; empty for a folder that may hold texts."""
    if what := _CODE_FOLDERS.get(os.path.basename(path), ""):
        return what
    has = {*names, *(f"{name}/" for name in folders), *(f"*{os.path.splitext(name)[1]}" for name in names)}
    for what, needed, keys in _PROGRAM_FOLDERS:
        if has.issuperset(needed) and (not keys or keys <= _keys(os.path.join(path, needed[0]))):
            return what
    return ""


def _keys(path: str) -> set[str]:
    """The keys of the JSON object in a file; none if it cannot be read."""
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError):
        return set()
    return {*content} if isinstance(content, dict) else set()


def _format_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return foreign_format(file.read(HEAD_BYTES), suffix_of(path))
    except OSError:
        return ""


def _size(path: str) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


# --- paths and patterns as a person writes them ---


def _name_matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A function that returns whether a name matches one of the patterns, ignoring case and Unicode form."""
    match = re.compile("|".join(fnmatch.translate(_folded(pattern)) for pattern in patterns) or "(?!)").match
    return lambda name: match(_folded(name)) is not None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _expand(entry: str, setting: str) -> list[Path]:
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
    literal, rest = _split_literal(path, setting)
    if not rest and os.path.exists(literal):
        return [Path(literal)]
    patterns = {unicodedata.normalize(form, rest) for form in ("NFC", "NFD")}
    matches = {match for pattern in patterns for match in _matches(literal, pattern.split(os.sep), setting)}
    found = [Path(match) for match in sorted(matches) if os.path.exists(match)]  # glob finds dangling links too
    if not found:
        raise MissingTextError(f"{setting}: {entry} does not exist (looked in {Path.cwd()})")
    return found


def _matches(folder: str, names: list[str], setting: str) -> Iterator[str]:
    """The paths below ``folder`` that match the names of a pattern. A folder is listed after it was checked."""
    check_allowed(folder or ".", setting)
    name, *rest = names
    if name == "**":
        yield from _matches(folder, rest or [""], setting)
    for path in glob.glob(os.path.join(glob.escape(folder), "*" if name == "**" else name)):
        is_folder = os.path.isdir(path)
        if is_folder and name == "**" and not _leads_up(path):
            yield from _matches(path, names, setting)
        elif is_folder and rest and name != "**":
            yield from _matches(path, rest, setting)
        elif not rest:
            yield path


def _leads_up(path: str) -> bool:
    """Whether a link leads to a folder that it is in."""
    return os.path.islink(path) and f"{os.path.realpath(os.path.dirname(path))}/".startswith(
        f"{os.path.realpath(path)}/"
    )


def _split_literal(path: str, setting: str) -> tuple[str, str]:
    """The existing folders at the start of a path, whose brackets are literal, and the rest, which is a pattern.

    A name that exists in another Unicode form counts as existing: macOS writes が as two characters.
    """
    names = path.split(os.sep)
    done = os.sep if path.startswith(os.sep) else ""
    for number, name in enumerate(names):
        here = os.path.join(done, name)
        if not os.path.lexists(here):
            other = _in_another_form(done or ".", name, setting)
            if other is None:
                return done, os.path.join(*names[number:])
            here = os.path.join(done, other)
        done = here
    return done, ""


def _in_another_form(folder: str, name: str, setting: str) -> str | None:
    if name.isascii() or not os.path.isdir(folder):
        return None
    check_allowed(folder, setting)
    wanted = unicodedata.normalize("NFC", name)
    return next((other for other in os.listdir(folder) if unicodedata.normalize("NFC", other) == wanted), None)
