"""Find, hash and examine the files of a corpus."""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, astuple, dataclass, replace
from itertools import chain, islice
from typing import IO, Any, Self

from lmcore import clock
from lmcore.corpus.compression import Unpacked
from lmcore.corpus.detection import GIT_POINTERS, HEAD_BYTES, RULES_VERSION, FileFormat, detect_format
from lmcore.corpus.file_finder import FileFinder, UnreadFiles
from lmcore.corpus.formats import SourceFile, advice, suffix_of
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Skip
from lmcore.errors import CorpusError
from lmcore.settings.config import DEFAULT_SOURCE, CorpusConfig
from lmcore.settings.urls import is_url

_STORED_BLOCKS = 64
"""Stored blocks that are unpacked at most to read a head."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scan:
    """The files of a corpus: those to train on and those given to validate on."""

    files: list[SourceFile]
    validation_files: list[SourceFile]
    unread: UnreadFiles
    """Files in the given folders that are not read."""
    skipped: list[Skip]
    """Files and folders that cannot be read, hold no text, or are not settled."""

    @property
    def all_files(self) -> list[SourceFile]:
        return self.files + self.validation_files

    def to_json(self) -> dict[str, Any]:
        """The scan as JSON values, files by path."""
        files = {file.path: astuple(file)[1:] for file in self.files}
        validation_files = {file.path: astuple(file)[1:] for file in self.validation_files}
        skipped = [[skip.path, skip.reason, skip.stored, skip.detail] for skip in self.skipped]
        unread = asdict(self.unread)
        return {"files": files, "validation_files": validation_files, "unread": unread, "skipped": skipped}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The scan that ``to_json`` wrote. Raises ValueError, LookupError or TypeError for other content."""
        files, validation_files = (
            [SourceFile(path, *about) for path, about in content[name].items()]
            for name in ("files", "validation_files")
        )
        skipped = [Skip(path, 0, 0, reason, stored, detail) for path, reason, stored, detail in content["skipped"]]
        return cls(files, validation_files, UnreadFiles(**content["unread"]), skipped)


def scan(config: CorpusConfig, index: HashIndex | None = None) -> Scan:
    """Find the files of a corpus, hash them and detect their formats. ``index`` remembers hashes and formats.

    Files that cannot be read are in ``skipped``. Raises CorpusError if a path is missing or nothing is found, and,
    if ``config.on_bad_input`` is "fail", for the first file that would be skipped.
    """
    require_paths(config)
    index = index or HashIndex(None)
    finder = FileFinder(config)
    held_out = finder.find(config.validation_paths, "corpus.validation_paths")
    found = {DEFAULT_SOURCE: finder.find(config.paths, "corpus.paths")} if config.paths else {}
    for name, paths in sorted(config.sources.items()):
        found[name] = finder.find(paths, f"corpus.sources.{name}")

    def examined(paths: dict[str, str], source: str) -> Iterator[SourceFile]:
        for path in paths.values():
            file = examine(path, source, config, index)
            if isinstance(file, Skip):
                finder.skipped.append(file)
            else:
                yield file

    files: list[SourceFile] = []
    seen = set(held_out)
    for source, real_paths in found.items():
        files += examined({real: path for real, path in real_paths.items() if real not in seen}, source)
        seen |= real_paths.keys()
    result = Scan(files, list(examined(held_out, DEFAULT_SOURCE)), finder.unread, finder.skipped)
    if config.on_bad_input == "fail" and result.skipped:
        first = result.skipped[0]
        what = advice(first.reason, first.path, first.detail)
        problem = f" is {what}" if what else f": {first.reason}. Repair it or leave it out with corpus.exclude"
        raise CorpusError(f"{first.path}{problem}")
    return result


def require_paths(config: CorpusConfig) -> None:
    """Raise CorpusError if the settings name no text."""
    if not config.source_names:
        raise CorpusError("corpus.paths is empty: give files, folders or globs, for example --corpus.paths my_texts/")


def examine(path: str, source: str, config: CorpusConfig, index: HashIndex, rehash: bool = False) -> SourceFile | Skip:
    """The file with its hash and format, or the reason why it is left out. ``rehash`` ignores a remembered hash.

    Raises OSError for a failing disk or server.
    """
    try:
        if is_unsettled(path, config.settle_seconds):
            _log.info("%s was changed in the last %g s: it is left for the next start", path, config.settle_seconds)
            return Skip(path, 0, 0, "unsettled")
        file = SourceFile(path, *index.size_and_hash(path, rehash), source)
        detected = _detect(file, index)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        _log.warning("%s cannot be read: %s", path, error.strerror)
        return Skip(path, 0, 0, "unreadable")
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"cannot be read: {error.strerror}", path) from error
    if detected.problem:
        return Skip(path, 0, 0, detected.problem, stored=file.stored_bytes, detail=detected.detail)
    is_chosen = config.document == "auto" or detected.kind != "paragraphs"
    return replace(file, detected_kind=detected.kind if is_chosen else "txt")


def _detect(file: SourceFile, index: HashIndex) -> FileFormat:
    """The format of a file, remembered by its content and the suffixes of its name."""
    suffixes = "/".join(file.name.split(".")[1:][-2:])
    key = f"look {RULES_VERSION} {file.digest} {suffixes}"
    if (known := index.get(key)) is not None:
        return FileFormat(*known)
    with index.open_head(file.path) as stream:
        found = format_of(stream, file)
    index.put(key, [found.kind, found.problem, found.detail])
    return found


def format_of(stream: IO[bytes], file: SourceFile) -> FileFormat:
    """The format that the first stored bytes of a file show."""
    return detect_format(*_read_head(stream, file.compression), file.kind, suffix_of(file.name))


def _read_head(stream: IO[bytes], compression: str) -> tuple[bytes, bool]:
    """The first unpacked bytes of a file, and whether they are all of it. A git pointer is not unpacked."""
    stored = stream.read(HEAD_BYTES)
    if not compression or stored.startswith(GIT_POINTERS):
        return stored, len(stored) < HEAD_BYTES
    blocks = chain([stored], islice(iter(lambda: stream.read(HEAD_BYTES), b""), _STORED_BLOCKS))
    unpacked, head = Unpacked(blocks, compression, math.inf), b""
    for block in unpacked:
        head += block
        if len(head) >= HEAD_BYTES:
            return head[:HEAD_BYTES], False
    return head, not unpacked.problem


def is_unsettled(path: str, settle_seconds: float) -> bool:
    """True for a local file that changed in the last ``settle_seconds``: somebody may still be writing it.

    A file dated later than that from now, by a wrong clock, counts as settled. Otherwise it would never be read.
    """
    if not settle_seconds or is_url(path):
        return False
    return abs(os.stat(path).st_mtime - clock.now()) < settle_seconds
