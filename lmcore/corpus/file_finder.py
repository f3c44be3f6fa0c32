"""Which files of the given paths are read, and which are not.

Files are chosen by name, ignoring case. Folders that hold a program's own files (a store, a model, a virtual
environment) are skipped, since nobody wrote the text in them. Every file that is not read is counted.
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

from lmcore.corpus.formats import HEAD_BYTES, advice, foreign_format, suffix_of
from lmcore.corpus.ledger import Skip, counted, printable
from lmcore.corpus.remote import file_name, is_url, remote_files
from lmcore.errors import CorpusError
from lmcore.settings.config import STANDARD_LIBRARY, CorpusConfig
from lmcore.store.allowed_paths import check_allowed

_CODE_FOLDERS = {"__pycache__": "compiled Python", "node_modules": "packages of node"}
_COUNTED_FOLDERS = {*_CODE_FOLDERS.values(), "hidden", "a git repository's own folder"}
"""Everybody knows that these hold no text: they are counted, the others named."""
_PROGRAMS = {"a", "dll", "dylib", "exe", "lib", "o", "pyc", "pyd", "so", "whl"}
_LONGEST_PATH = 4095
_SHOWN = 5


@dataclass
class Beside:
    """What lies in the given folders and is not read."""

    files: int = 0
    """In all: hidden and excluded ones too."""
    by_suffix: dict[str, list[int]] = field(default_factory=dict)
    """[files, bytes] that no pattern of corpus.include names."""
    folders: dict[str, str] = field(default_factory=dict)
    """What each folder that was left out is."""
    largest: tuple[int, str] = (0, "")
    """Bytes and path of the largest file that no pattern names."""

    @property
    def bytes(self) -> int:
        """Of those by_suffix that may hold text."""
        return sum(size for suffix, (_, size) in self.by_suffix.items() if suffix not in _PROGRAMS)

    def add(self, path: str, size: int) -> None:
        row = self.by_suffix.setdefault(suffix_of(file_name(path)), [0, 0])
        row[0] += 1
        row[1] += size
        self.largest = max(self.largest, (size, path))

    def in_words(self) -> str:
        """Counts by suffix, the largest first; empty when there is nothing."""
        rows = sorted(self.by_suffix.items(), key=lambda row: (-row[1][1], row[0]))
        parts = [f"{files:,} {f'.{suffix}' if suffix else 'without suffix'}" for suffix, (files, _) in rows]
        return ", ".join(parts[:_SHOWN] + [f"{len(parts) - _SHOWN} other suffixes"] * (len(parts) > _SHOWN))

    def folders_in_words(self) -> list[str]:
        """A line of all folders that are only counted, and one for each of the first of every other kind."""
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


class Finder:
    """Finds the files to read, counts the others, and keeps those that could not be examined."""

    def __init__(self, config: CorpusConfig) -> None:
        self._config = config
        self._included, self._excluded = _matcher(config.include), _matcher(config.exclude)
        self.beside = Beside()
        self.skipped: list[Skip] = []

    def find(self, paths: list[str], setting: str) -> dict[str, str]:
        """Real path -> path as found: a file reached by two ways is read once, and a link keeps its own name."""
        ignored = self.beside.files
        found = dict(self._files(paths, setting))
        if paths and not found and not self.skipped:
            raise CorpusError(f"{setting}: {self._nothing(paths, self.beside.files - ignored)}")
        return dict(sorted(found.items()))

    def check(self, paths: list[str], setting: str) -> None:
        """Raise what ``find`` would raise for local paths without a file to read; the first such file is enough."""
        if not any(map(is_url, paths)) and next(self._files(paths, setting), None) is None:
            Finder(self._config).find(paths, setting)

    def _files(self, paths: list[str], setting: str) -> Iterator[tuple[str, str]]:
        for entry in paths:
            if is_url(entry):
                yield from ((url, url) for url in self._remote(entry, setting))
                continue
            for path in expand(entry, setting):
                check_allowed(path, setting)
                if path.is_dir():
                    yield from ((os.path.realpath(file), file) for file in self._walk(path, setting))
                elif not stat.S_ISREG(path.stat().st_mode):
                    raise CorpusError(f"{setting}: {path} is neither a file nor a folder")
                else:
                    self._check_included(str(path), setting)
                    yield os.path.realpath(path), os.path.abspath(path)

    def _nothing(self, paths: list[str], ignored: int) -> str:
        places = ", ".join(paths)
        kinds = f": {words}" if (words := self.beside.in_words()) else ""
        others = f"{counted(ignored, 'other file')} there{kinds}"
        message = f"no file in {places} matches corpus.include {self._config.include} ({others})"
        for path, what in self.beside.folders.items():
            if os.path.abspath(os.path.expanduser(paths[0])) == path:
                return f"{places} is {what}, whose files are not read as text. Give the folder that holds the texts"
        path = self.beside.largest[1]
        reason = "" if not path or is_url(path) else _format_of(path)
        return f"{message}. {path} is {advice(reason, path)}" if reason else message

    def _remote(self, entry: str, setting: str) -> Iterator[str]:
        check_allowed(entry, setting)
        for url, below in remote_files(entry, setting).items():
            check_allowed(url, setting)
            if not below:
                self._check_included(url, setting)
            folders = below.split("/")[:-1]
            if below and (self._leaves_out(file_name(url)) or any(map(self._leaves_out, folders))):
                self.beside.files += 1
            elif below and not self._included(file_name(url)):
                self.beside.files += 1
                self.beside.add(url, 0)
            else:
                yield url

    def _check_included(self, path: str, setting: str) -> None:
        name = file_name(path)
        if not self._included(name):
            reason = "" if is_url(path) else _format_of(path)
            if reason:
                raise CorpusError(f"{setting}: {path} is {advice(reason, path)}")
            raise CorpusError(
                f"{setting}: {name} matches none of corpus.include {self._config.include}: "
                f"if it is plain text, add --corpus.include '*{Path(name).suffix or name}'"
            )

    def _walk(self, folder: Path, setting: str) -> Iterator[str]:
        """Files below ``folder``: hidden and excluded names left out, links followed, each folder once."""
        visited = set()
        for root, folders, names in os.walk(folder.absolute(), followlinks=True, onerror=self._unreadable):
            identity = os.stat(root)
            if (identity.st_dev, identity.st_ino) in visited:
                folders.clear()
                continue
            visited.add((identity.st_dev, identity.st_ino))
            check_allowed(root, setting)
            if what := what_folder(root, folders, names):
                self.beside.folders[root] = what
                folders.clear()
                continue
            self.beside.folders |= {os.path.join(root, name): "hidden" for name in folders if name.startswith(".")}
            folders[:] = sorted(name for name in folders if not self._leaves_out(name))
            for name in names:
                path = os.path.join(root, name)
                if not self._passes_over(name, path) and self._is_readable(path):
                    if os.path.islink(path):
                        check_allowed(path, setting)
                    yield path

    def _passes_over(self, name: str, path: str) -> bool:
        if self._leaves_out(name):
            self.beside.files += 1
            return True
        if self._included(name):
            return False
        self.beside.files += 1
        self.beside.add(path, _size(path))
        return True

    def _is_readable(self, path: str) -> bool:
        """Whether it is a file that can be named; else it is skipped."""
        shown, reason = path, ""
        if not _is_text(path):
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
        return name.startswith(".") or self._excluded(name)

    def _unreadable(self, error: OSError) -> None:
        self.skipped.append(Skip(str(error.filename), 0, 0, "unreadable"))


def what_folder(path: str, folders: list[str], names: list[str]) -> str:
    """What a folder is that programs keep for themselves; empty for one that may hold texts."""
    if what := _CODE_FOLDERS.get(os.path.basename(path), ""):
        return what
    if "format.json" in names and _holds(path, "format.json", "format_version"):
        return "a store of this program"
    if "manifest.json" in names and _holds(path, "manifest.json", "kind", "files"):
        return "a part of a store of this program"
    if "metrics.jsonl" in names and "config.json" in names:
        return "a training run"
    if "config.json" in names and any(name.endswith((".safetensors", ".gguf")) for name in names):
        return "an exported model"
    if "pyvenv.cfg" in names:
        return "a virtual environment"
    if "prefect.db" in names or ("profiles.toml" in names and "storage" in folders):
        return "a Prefect home"
    if "HEAD" in names and {"objects", "refs"} <= set(folders):
        return "a git repository's own folder"
    return ""


def _holds(folder: str, name: str, *keys: str) -> bool:
    """Whether a JSON file is an object with these keys; one that cannot be read is not."""
    try:
        content = json.loads(Path(folder, name).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and all(key in content for key in keys)


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


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name matches one of some patterns, whatever its case and its Unicode form."""
    match = re.compile("|".join(fnmatch.translate(_plain(pattern)) for pattern in patterns) or "(?!)").match
    return lambda name: match(_plain(name)) is not None


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


# --- the paths as they are given ---


def expand(entry: str, setting: str) -> list[Path]:
    """The files and folders that a path names, or that match it. Raises CorpusError when there is none."""
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
    literal, rest = _literal(path)
    if not rest and os.path.exists(literal):
        return [Path(literal)]
    patterns = {os.path.join(glob.escape(literal), unicodedata.normalize(form, rest)) for form in ("NFC", "NFD")}
    matches = sorted({match for pattern in patterns for match in glob.glob(pattern, recursive=True)})
    matches = list(filter(os.path.exists, matches))  # glob finds dangling links too
    if not matches:
        raise CorpusError(f"{setting}: {entry} does not exist (looked in {Path.cwd()})")
    return [Path(match) for match in matches]


def _literal(path: str) -> tuple[str, str]:
    """The folders at the beginning of a path that are there by name, brackets and all, and the rest, a pattern.

    A name that is there in another Unicode form counts as there: macOS writes が as two characters.
    """
    names = path.split(os.sep)
    done = os.sep if path.startswith(os.sep) else ""
    for number, name in enumerate(names):
        here = os.path.join(done, name)
        if not os.path.lexists(here):
            there = _in_another_form(done or ".", name)
            if there is None:
                return done, os.path.join(*names[number:])
            here = os.path.join(done, there)
        done = here
    return done, ""


def _in_another_form(folder: str, name: str) -> str | None:
    if name.isascii() or not os.path.isdir(folder):
        return None
    wanted = unicodedata.normalize("NFC", name)
    return next((other for other in os.listdir(folder) if unicodedata.normalize("NFC", other) == wanted), None)
