"""The files of a corpus: found, hashed, and named by their content.

A corpus has two names: ``id`` for its content and the way it is read, and ``listing`` for its content and
paths. A rename changes the second only, so nothing that was made from the content is made again.
"""

import fnmatch
import glob
import os
import stat
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lmcore.config import STANDARD_LIBRARY, CorpusConfig, fingerprint
from lmcore.errors import CorpusError
from lmcore.store import FORMAT_VERSION, Output, hash_file


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the corpus and the hash of its stored bytes."""

    path: str
    stored_bytes: int
    blake2b: str

    @property
    def is_jsonl(self) -> bool:
        return self.path.removesuffix(".gz").endswith(".jsonl")

    @property
    def is_gzip(self) -> bool:
        return self.path.endswith(".gz")

    @property
    def kind(self) -> str:
        """What decides how the bytes are read, so that a rename which changes it is noticed."""
        name = self.path.removesuffix(".gz")
        kind = "jsonl" if self.is_jsonl else "txt" if name.endswith(".txt") else "text"
        return kind + (".gz" if self.is_gzip else "")


@dataclass(frozen=True)
class Scan:
    """The files of a corpus: those to train on and those given to validate on."""

    files: list[SourceFile]
    validation_files: list[SourceFile]
    ignored_files: int


class Corpus(Output):
    """A corpus in figures. ``id`` names its content, ``listing`` its content and its paths."""

    id: str
    listing: str
    files: int
    validation_files: int
    ignored_files: int
    """Files in the given folders that corpus.include does not name."""
    stored_bytes: int

    def verify(self) -> None:
        """The corpus belongs to its owner; nothing of it is kept in the store."""


def scan(config: CorpusConfig) -> Scan:
    """Find and hash the files of a corpus.

    Raises CorpusError when a path is missing, unreadable or of a kind nobody asked for, or nothing
    is found.
    """
    if not config.paths:
        raise CorpusError("corpus.paths is empty: give files, folders or globs, for example --corpus.paths my_texts/")
    files, ignored = _find(config.paths, config, "corpus.paths")
    held_out, validation_ignored = _find(config.validation_paths, config, "corpus.validation_paths")
    return Scan(
        files=[_source_file(path) for real, path in files.items() if real not in held_out],
        validation_files=[_source_file(path) for path in held_out.values()],
        ignored_files=ignored + validation_ignored,
    )


def describe(found: Scan, config: CorpusConfig) -> Corpus:
    """Name a scanned corpus by its content and by the settings that decide how it is read."""
    reading = {
        "document": config.document,
        "text_field": config.text_field,
        "max_document_bytes": config.max_document_bytes,
        "validation": "files" if config.validation_paths else config.validation_fraction,
    }

    def content(files: list[SourceFile]) -> list[list[str]]:
        return sorted([file.kind, file.blake2b] for file in files)

    corpus_id = fingerprint(FORMAT_VERSION, reading, content(found.files), content(found.validation_files))
    everything = found.files + found.validation_files
    return Corpus(
        id=corpus_id,
        listing=fingerprint(corpus_id, sorted([file.path, file.blake2b] for file in everything)),
        files=len(found.files),
        validation_files=len(found.validation_files),
        ignored_files=found.ignored_files,
        stored_bytes=sum(file.stored_bytes for file in everything),
    )


def scan_again(config: CorpusConfig, expected: Corpus) -> Scan:
    """``scan``, and raise CorpusError if the corpus is no longer the expected one."""
    found = scan(config)
    now = describe(found, config)
    if now.listing != expected.listing:
        raise CorpusError(
            f"the corpus changed while it was being prepared (was {expected.listing}, is {now.listing}): "
            "start again when nobody writes to it"
        )
    return found


def _find(paths: list[str], config: CorpusConfig, setting: str) -> tuple[dict[str, str], int]:
    """The files to read (real path -> path as found), and how many others lay beside them.

    A file reached by two ways is read once; a link keeps its own name, which says what it holds.
    """
    found: dict[str, str] = {}
    ignored = 0
    for entry in paths:
        for path in _expand(entry, setting):
            if path.is_dir():
                inside, passed_over = _walk(path, config)
                ignored += passed_over
                found.update((os.path.realpath(file), file) for file in inside)
            elif not stat.S_ISREG(path.stat().st_mode):
                raise CorpusError(f"{setting}: {path} is neither a file nor a folder")
            elif not _matches(path.name, config.include):
                raise CorpusError(
                    f"{setting}: {path.name} matches none of corpus.include {config.include}: "
                    f"if it is plain text, add --corpus.include '*{path.suffix or path.name}'"
                )
            else:
                found[os.path.realpath(path)] = os.path.abspath(path)
    if paths and not found:
        raise CorpusError(
            f"{setting}: no file in {', '.join(paths)} matches corpus.include {config.include} "
            f"({ignored} other files there)"
        )
    return dict(sorted(found.items())), ignored


def _expand(entry: str, setting: str) -> list[Path]:
    if entry == STANDARD_LIBRARY:
        return [Path(sysconfig.get_path("stdlib"))]
    if not entry:
        raise CorpusError(f"{setting}: one of the paths is empty; the current folder is '.'")
    path = Path(entry).expanduser()
    if path.exists():
        return [path]
    matches = sorted(filter(os.path.exists, glob.glob(str(path), recursive=True)))  # glob finds dangling links too
    if not matches:
        raise CorpusError(f"{setting}: {entry} does not exist (looked in {Path.cwd()})")
    return [Path(match) for match in matches]


def _walk(folder: Path, config: CorpusConfig) -> tuple[list[str], int]:
    """Files below ``folder``: hidden and excluded names left out, links followed, each folder once."""
    files, ignored, visited = [], 0, set()
    for root, folders, names in os.walk(folder.absolute(), followlinks=True, onerror=_unreadable):
        identity = os.stat(root)
        if (identity.st_dev, identity.st_ino) in visited:
            folders.clear()
            continue
        visited.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not _left_out(name, config.exclude))
        for name in names:
            path = os.path.join(root, name)
            if _left_out(name, config.exclude) or not _matches(name, config.include) or not os.path.isfile(path):
                ignored += 1
            else:
                files.append(path)
    return files, ignored


def _unreadable(error: OSError) -> None:
    raise CorpusError(f"{error.filename} cannot be read: {error.strerror}") from error


def _left_out(name: str, exclude: list[str]) -> bool:
    return name.startswith(".") or _matches(name, exclude)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _source_file(path: str) -> SourceFile:
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise CorpusError(
            f"the name {os.fsencode(path)!r} is no UTF-8: rename it or leave it out with corpus.exclude"
        ) from error
    try:
        return SourceFile(path, os.path.getsize(path), hash_file(Path(path)))
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read: {error.strerror}. Mend its permissions or leave it out with corpus.exclude"
        ) from error
