"""The files of a corpus: found, hashed, and named by their content.

A corpus has two names: ``id`` for its content and the way it is read, and ``listing`` for its content and
paths. A rename changes the second only, so nothing that was made from the content is made again.
"""

import importlib.util
import logging
import os
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from lmcore import clock
from lmcore.corpus.compression import compression_of
from lmcore.corpus.exclusions import excluded_hashes
from lmcore.corpus.file_finder import Beside, Finder, expand
from lmcore.corpus.formats import LOOK_VERSION, PLAIN_TEXT, Look, advice, kind_of_name, look, read_head
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Skip, counted, printable
from lmcore.corpus.remote import file_name, hash_stored, is_url, open_beginning, stored_size, version
from lmcore.errors import ConfigError, CorpusError
from lmcore.settings.config import DEFAULT_SOURCE, STANDARD_LIBRARY, CorpusConfig, RunConfig
from lmcore.settings.section import fingerprint
from lmcore.store.allowed_paths import check_settings_allowed
from lmcore.store.artifacts import FORMAT_VERSION
from lmcore.store.files import hash_file
from lmcore.store.layout import prepare_store
from lmcore.store.outputs import Output
from lmcore.store.remembered_inputs import remember_files

_log = logging.getLogger(__name__)
_NAMED = 3
"""Files of each kind that the log names."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file of the corpus and the hash of its stored bytes."""

    path: str
    stored_bytes: int
    digest: str
    source: str = DEFAULT_SOURCE
    found_kind: str = ""
    """What its content says; empty where nobody looked."""

    @property
    def compression(self) -> str:
        return compression_of(file_name(self.path).lower())

    @property
    def kind(self) -> str:
        """How the unpacked bytes are read: jsonl, parquet, arrow, txt, paragraphs or text."""
        return self.found_kind or kind_of_name(file_name(self.path))

    @property
    def is_table(self) -> bool:
        return self.kind in ("parquet", "arrow")


@dataclass(frozen=True)
class Scan:
    """The files of a corpus: those to train on and those given to validate on."""

    files: list[SourceFile]
    validation_files: list[SourceFile]
    beside: Beside
    """What lies in the given folders and is not read."""
    skipped: list[Skip]
    """Files and folders that could not be read, files that hold no text, and files that are not settled."""
    as_of: float = 0.0
    """When files had to be settled; 0 where nothing asks for that."""


class Corpus(Output):
    """A corpus in figures. ``id`` names its content, ``listing`` its content and its paths."""

    id: str
    listing: str
    files: int
    validation_files: int
    stored_bytes: int
    as_of: float = 0.0
    """When files had to be settled, in seconds since 1970; 0 where nothing asks for that."""

    def verify(self) -> None:
        """The corpus belongs to its owner; nothing of it is kept in the store."""


def _made(key: str, make: Callable[[], Any]) -> Any:
    return make()


def scan(
    config: CorpusConfig,
    hash_of: Callable[[str], str] = hash_stored,
    as_of: float = 0.0,
    known: Callable[[str, Callable[[], Any]], Any] = _made,
) -> Scan:
    """Find and hash the files of a corpus, and look at their beginnings.

    ``as_of`` is when they must be settled; 0: now. ``known`` gives what it remembers under a key, else makes it.

    Raises CorpusError when a path is missing or of a kind nobody asked for, or nothing is found; what cannot be read
    is in ``skipped``, or raised if ``config.on_bad_input`` is "fail".
    """
    if not config.paths and not config.sources:
        raise _no_paths()
    finder = Finder(config)
    held_out = finder.find(config.validation_paths, "corpus.validation_paths")
    files = {DEFAULT_SOURCE: finder.find(config.paths, "corpus.paths")} if config.paths else {}
    for name, paths in sorted(config.sources.items()):
        files[name] = finder.find(paths, f"corpus.sources.{name}")
    seen = set(held_out)
    skipped = finder.skipped
    as_of = as_of or (clock.now() if config.settle_seconds else 0.0)

    def examined(found: dict[str, str], source: str) -> Iterator[SourceFile]:
        for path in found.values():
            file = _examine(path, source, config, as_of, hash_of, known)
            if isinstance(file, Skip):
                skipped.append(file)
            else:
                yield file

    scanned: list[SourceFile] = []
    for source, found in files.items():
        scanned += examined({real: path for real, path in found.items() if real not in seen}, source)
        seen |= found.keys()
    result = Scan(scanned, list(examined(held_out, DEFAULT_SOURCE)), finder.beside, skipped, as_of)
    if skipped and config.on_bad_input == "fail":
        what = advice(skipped[0].reason, skipped[0].path, skipped[0].detail)
        about = f" is {what}" if what else f": {skipped[0].reason}. Mend it or leave it out with corpus.exclude"
        raise CorpusError(f"{skipped[0].path}{about}")
    return result


def _examine(
    path: str,
    source: str,
    config: CorpusConfig,
    as_of: float,
    hash_of: Callable[[str], str],
    known: Callable[[str, Callable[[], Any]], Any],
) -> SourceFile | Skip:
    """The file, hashed and looked at, or why it is left out. Raises OSError for a failing disk or server."""
    try:
        if is_unsettled(path, config.settle_seconds, as_of):
            _log.info("%s was changed in the last %g s: left for later", path, config.settle_seconds)
            return Skip(path, 0, 0, "unsettled")
        file = SourceFile(path, stored_size(path), hash_of(path), source)
        about = _look(file, known)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        _log.warning("%s cannot be read: %s", path, error.strerror)
        return Skip(path, 0, 0, "unreadable")
    except ConnectionError:
        raise
    except OSError as error:
        raise OSError(error.errno, f"cannot be read: {error.strerror}", path) from error
    if about.problem:
        return Skip(path, 0, 0, about.problem, stored=file.stored_bytes, detail=about.detail)
    is_chosen = config.document == "auto" or about.kind != "paragraphs"
    return replace(file, found_kind=about.kind if is_chosen else "txt")


def _look(file: SourceFile, known: Callable[[str, Callable[[], Any]], Any]) -> Look:
    """What the file is by its first bytes, remembered by its content and the end of its name."""
    name = file_name(file.path)
    ends = "/".join(name.lower().split(".")[1:][-2:])

    def found() -> list[str]:
        with open_beginning(file.path) as stream:
            head, is_whole = read_head(stream, file.compression)
        about = look(head, is_whole, name)
        return [about.kind, about.problem, about.detail]

    return Look(*known(f"look {LOOK_VERSION} {file.digest} {ends}", found))


def is_unsettled(path: str, settle_seconds: float, as_of: float) -> bool:
    """Whether a local file was changed since, or so shortly before, ``as_of`` that somebody may still be writing it.

    One dated later than now by more than that, as when a clock was wrong, counts as settled, or it would never be read.
    """
    if not settle_seconds or is_url(path):
        return False
    latest = max(as_of, clock.now()) + settle_seconds
    return as_of - settle_seconds < os.stat(path).st_mtime < latest


def check_paths(config: RunConfig) -> None:
    """Raise what ``open_corpus`` would raise for settings that do not fit and local paths that are missing or empty.

    No file is read.
    """
    _check_settings(config)
    lists = {"corpus.validation_paths": config.corpus.validation_paths, "corpus.paths": config.corpus.paths}
    lists |= {f"corpus.sources.{name}": paths for name, paths in config.corpus.sources.items()}
    for setting, paths in lists.items():
        for path in paths:
            if not is_url(path):
                expand(path, setting)
        Finder(config.corpus).check(paths, setting)


def _check_settings(config: RunConfig) -> None:
    """Check the paths and sources of the settings before any file is read.

    Raises ConfigError when a setting leads outside LM_DATA_ROOTS, or dataset.weights or dataset.epochs name other
    sources, and CorpusError when no path is given.
    """
    check_settings_allowed(config)
    named, given = set(config.dataset.weights or config.dataset.epochs), set(config.corpus.source_names)
    if named and named != given:
        raise ConfigError(
            f"dataset.weights or dataset.epochs must name the corpus's sources, {', '.join(sorted(given))}: missing "
            f"are {sorted(given - named)}, unknown {sorted(named - given)}. 0 leaves a source out"
        )
    if not given:
        raise _no_paths()


def _no_paths() -> CorpusError:
    return CorpusError("corpus.paths is empty: give files, folders or globs, for example --corpus.paths my_texts/")


def open_corpus(config: RunConfig) -> tuple[Corpus, Path]:
    """The corpus in figures, and the opened store; where no corpus is found, no store is made.

    Raises ConfigError when a setting leads outside LM_DATA_ROOTS, or dataset.weights or dataset.epochs name other
    sources, and what ``scan`` raises.
    """
    _check_settings(config)
    with HashIndex(config.store.expanduser(), config.rehash) as index:
        found = scan(config.corpus, index.hash_of, known=index.known)
        _say(found, config)
        corpus, store = describe(found, config.corpus), prepare_store(config.store)
        remember_files(store, corpus.id, {file.path: file.digest for file in found.files + found.validation_files})
        return corpus, store


def _say(found: Scan, config: RunConfig) -> None:
    """In the log, what was passed over and how plain text is read. Raises CorpusError for texts inside the store."""
    for words in found.beside.folders_in_words():
        _log.info("%s", words)
    if words := found.beside.in_words():
        _log.info("files beside them that match no pattern of corpus.include: %s", words)
    if config.corpus.document == "auto" and (words := _units_in_words(found.files)):
        _log.info("documents of plain text (corpus.document = auto): %s", words)
    store = os.path.realpath(config.store.expanduser())
    if file := next((f.path for f in found.files if os.path.realpath(f.path).startswith(f"{store}{os.sep}")), ""):
        raise CorpusError(
            f"{file} lies in the store {store}: what is made there would become text of the next run. Give another "
            "--store, or keep the texts in a folder of their own"
        )


def _units_in_words(files: list[SourceFile]) -> str:
    """What a document is in which plain texts."""
    named: dict[str, list[str]] = {}
    for file in files:
        if file.kind in PLAIN_TEXT:
            named.setdefault(file.kind, []).append(printable(file_name(file.path)))
    return "; ".join(
        f"{PLAIN_TEXT[kind]} in {counted(len(names), 'file')} "
        f"({', '.join(names[:_NAMED] + ['...'] * (len(names) > _NAMED))})"
        for kind, names in sorted(named.items())
    )


def anchored(config: CorpusConfig) -> CorpusConfig:
    """The same settings with paths that mean the same from every folder."""

    def absolute(paths: list[str]) -> list[str]:
        fixed = [path for path in paths if path == STANDARD_LIBRARY or is_url(path)]
        return [path if path in fixed else os.path.abspath(os.path.expanduser(path)) for path in paths]

    sources = {name: absolute(paths) for name, paths in config.sources.items()}
    paths = {name: absolute(getattr(config, name)) for name in ("paths", "validation_paths")}
    return config.model_copy(update={"sources": sources, **paths, "exclude_documents": _excluded(config)})


def _excluded(config: CorpusConfig) -> list[str]:
    return [f"{value:016x}" for value in excluded_hashes(config)]


def describe(found: Scan, config: CorpusConfig) -> Corpus:
    """Name a scanned corpus by its content and by the settings that decide how it is read and what is left out."""
    settings = {
        **reading(config),
        # What is left out is not trained on, by a tokenizer either.
        **config.model_dump(include={"min_bytes", "max_bytes", "deduplicate"}, exclude_defaults=True),
        **({"exclude_documents": _excluded(config)} if config.exclude_documents else {}),
        "validation": "files" if config.validation_paths else config.validation_fraction,
    }

    def content(files: list[SourceFile]) -> list[list[str]]:
        return sorted([file.kind, file.compression, file.digest] for file in files)

    corpus_id = fingerprint(FORMAT_VERSION, settings, content(found.files), content(found.validation_files))
    everything = found.files + found.validation_files
    skipped = [[skip.path, skip.reason] for skip in found.skipped]
    return Corpus(
        id=corpus_id,
        listing=fingerprint(corpus_id, sorted([file.path, file.source, file.digest] for file in everything), skipped),
        files=len(found.files),
        validation_files=len(found.validation_files),
        stored_bytes=sum(file.stored_bytes for file in everything),
        as_of=found.as_of,
    )


def reading(config: CorpusConfig) -> dict[str, Any]:
    """Everything but the files themselves that decides which documents a file holds."""
    names = ("document", "text_field", "max_document_bytes", "max_expansion", "normalize", "filter")
    settings = {name: getattr(config, name) for name in names}
    if config.normalize:
        settings["normalized_by"] = unicodedata.unidata_version
    if config.filter:
        settings["filtered_by"] = _source_of(config.filter)
    return settings


def _source_of(function: str) -> str:
    """Hash of the module that a dotted name is in: another version of it is another filter."""
    try:
        module = importlib.util.find_spec(function.rpartition(".")[0])
    except (ImportError, ValueError):  # a ValueError: __main__
        module = None
    if module is None or not module.origin or not module.has_location:
        raise ConfigError(f"corpus.filter: there is no {function} in a module of a file; give package.module.function")
    return _hash_of_version(module.origin, version(module.origin))


@lru_cache(maxsize=8)
def _hash_of_version(path: str, version: str) -> str:
    return hash_file(Path(path))


def scan_again(
    config: CorpusConfig,
    expected: Corpus,
    hash_of: Callable[[str], str] = hash_stored,
    known: Callable[[str, Callable[[], Any]], Any] = _made,
) -> Scan:
    """``scan``, and raise CorpusError if the corpus is no longer the expected one."""
    found = scan(config, hash_of, expected.as_of, known)
    now = describe(found, config)
    if now.listing != expected.listing:
        raise CorpusError(
            f"the corpus changed while it was being prepared (was {expected.listing}, is {now.listing}): "
            "start again when nobody writes to it"
        )
    return found
