"""The listing of a corpus: its files, found once for each start, and the names of its content.

``open_corpus`` scans the corpus and writes the listing into the store. The stages that read text take the files from
there. A corpus has two names: ``id`` for its content and the way it is read, ``listing`` for its content and paths.
A rename changes only ``listing``, so nothing that was made from the content is made again. Documents that
``corpus.exclude_documents`` leaves out are part of ``id``.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any, Self

import numpy as np

from lmcore.corpus.document_hashes import HASH, Hashes, hash_names, parse_hashes
from lmcore.corpus.file_finder import FileFinder
from lmcore.corpus.formats import PLAIN_TEXT, SourceFile
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Ledger, counted, printable
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import Scan, require_paths, scan
from lmcore.corpus.text_range import reading_settings
from lmcore.errors import ConfigError, CorpusError
from lmcore.settings.config import STANDARD_LIBRARY, CorpusConfig, RunConfig
from lmcore.settings.section import fingerprint
from lmcore.settings.urls import file_name, is_url
from lmcore.store.allowed_paths import check_allowed, check_settings_allowed
from lmcore.store.artifacts import FORMAT_VERSION
from lmcore.store.layout import prepare_store
from lmcore.store.outputs import Output
from lmcore.store.remembered_inputs import remember_files, remembered_files

_log = logging.getLogger(__name__)
_NAMED = 3
"""Files of each kind that the log names."""


class Corpus(Output):
    """A corpus in figures."""

    id: str
    listing: str
    files: int
    validation_files: int
    stored_bytes: int

    def verify(self) -> None:
        """Do nothing: the corpus belongs to its owner, and the store keeps nothing of it."""

    @classmethod
    def from_scan(cls, found: Scan, config: CorpusConfig) -> Self:
        """Name a scanned corpus by its content and by the settings that decide which documents it gives."""
        settings = {
            **reading_settings(config),
            # Documents that are left out do not train a tokenizer either.
            **config.model_dump(include={"min_bytes", "max_bytes", "deduplicate"}, exclude_defaults=True),
            **({"exclude_documents": hash_names(excluded_hashes(config))} if config.exclude_documents else {}),
            "validation": "files" if config.validation_paths else config.validation_fraction,
        }
        corpus_id = fingerprint(FORMAT_VERSION, settings, _content(found.files), _content(found.validation_files))
        paths = sorted([file.path, file.source, file.digest] for file in found.all_files)
        skipped = [[skip.path, skip.reason] for skip in found.skipped]
        return cls(
            id=corpus_id,
            listing=fingerprint(corpus_id, paths, skipped),
            files=len(found.files),
            validation_files=len(found.validation_files),
            stored_bytes=sum(file.stored_bytes for file in found.all_files),
        )


def _content(files: list[SourceFile]) -> list[list[str]]:
    return sorted([file.kind, file.compression, file.digest] for file in files)


def open_corpus(config: RunConfig) -> tuple[Corpus, Path]:
    """Scan the corpus, write its listing, and return its figures and the store. No corpus: no store is created.

    Raises ConfigError if a setting leads outside LM_DATA_ROOTS, or if dataset.weights names other
    sources, and the errors of ``scan``.
    """
    _check_settings(config)
    with HashIndex(config.store.expanduser(), config.rehash) as index:
        found = scan(config.corpus, index)
        _log_scan(found, config)
        _check_outside_store(found, config.store)
        corpus, store = Corpus.from_scan(found, config.corpus), prepare_store(config.store)
        remember_files(store, corpus.id, found.to_json())
        return corpus, store


def corpus_files(corpus: Corpus, config: CorpusConfig, store: Path, index: HashIndex) -> Scan:
    """The files of a corpus from its listing; without a listing the corpus is scanned again.

    Raises CorpusError if it has to be scanned and has changed.
    """
    try:
        found = Scan.from_json(remembered_files(store, corpus.id) or {})
        if Corpus.from_scan(found, config).listing == corpus.listing:
            return found
    except (OSError, ValueError, LookupError, TypeError):
        pass  # it is missing, damaged, or from an older version
    found = scan(config, index)
    now = Corpus.from_scan(found, config).listing
    if now != corpus.listing:
        raise CorpusError(
            f"the corpus changed while it was being prepared (was {corpus.listing}, is {now}): "
            "start again when nobody writes to it"
        )
    return found


# --- checks ---


def check_paths(config: RunConfig) -> None:
    """Raise the error of ``open_corpus`` for settings that do not fit and local paths that are missing or empty.

    No file is read.
    """
    _check_settings(config)
    lists = {"corpus.validation_paths": config.corpus.validation_paths, "corpus.paths": config.corpus.paths}
    lists |= {f"corpus.sources.{name}": paths for name, paths in config.corpus.sources.items()}
    for setting, paths in lists.items():
        FileFinder(config.corpus).check(paths, setting)


def _check_settings(config: RunConfig) -> None:
    check_settings_allowed(config)
    named, given = set(config.dataset.weights), set(config.corpus.source_names)
    if named and named != given:
        raise ConfigError(
            f"dataset.weights must name the corpus's sources, {', '.join(sorted(given))}: missing "
            f"are {sorted(given - named)}, unknown {sorted(named - given)}. 0 leaves a source out"
        )
    require_paths(config.corpus)


def _check_outside_store(found: Scan, store: Path) -> None:
    root = f"{os.path.realpath(store.expanduser())}{os.sep}"
    if path := next((file.path for file in found.files if os.path.realpath(file.path).startswith(root)), ""):
        raise CorpusError(
            f"{path} lies in the store {root[:-1]}: the outputs in the store would become text of the next run. Give "
            "another --store, or keep the texts in a folder of their own"
        )


def _log_scan(found: Scan, config: RunConfig) -> None:
    """Log which files are not read and how plain text is cut."""
    for words in found.unread.folder_summary():
        _log.info("%s", words)
    if words := found.unread.summary():
        _log.info("files beside them that match no pattern of corpus.include: %s", words)
    if config.corpus.document == "auto" and (words := _unit_summary(found.files)):
        _log.info("documents of plain text (corpus.document = auto): %s", words)


def _unit_summary(files: list[SourceFile]) -> str:
    """What a document is in which plain text files."""
    names: dict[str, list[str]] = {}
    for file in files:
        if file.kind in PLAIN_TEXT:
            names.setdefault(file.kind, []).append(printable(file_name(file.path)))
    return "; ".join(
        f"{PLAIN_TEXT[kind]} in {counted(len(some), 'file')} "
        f"({', '.join(some[:_NAMED] + ['...'] * (len(some) > _NAMED))})"
        for kind, some in sorted(names.items())
    )


def with_absolute_paths(config: CorpusConfig) -> CorpusConfig:
    """The same settings with absolute paths, so that they mean the same from every folder."""

    def absolute(paths: list[str]) -> list[str]:
        return [path if path == STANDARD_LIBRARY or is_url(path) else str(_absolute(path)) for path in paths]

    changes: dict[str, Any] = {name: absolute(getattr(config, name)) for name in ("paths", "validation_paths")}
    changes["sources"] = {name: absolute(paths) for name, paths in config.sources.items()}
    return config.model_copy(update={**changes, "exclude_documents": hash_names(excluded_hashes(config))})


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(path)))


def excluded_hashes(config: CorpusConfig) -> Hashes:
    """The hashes of corpus.exclude_documents, sorted. Raises ConfigError for an entry that is neither hash nor file."""
    found = [_hashes_of(entry, config) for entry in config.exclude_documents]
    return np.unique(np.concatenate([np.empty(0, np.uint64), *found]))


def _hashes_of(entry: str, config: CorpusConfig) -> Hashes:
    """A hash, the hashes in a file that begins with one, or those of a file's documents, cut as the corpus is."""
    if re.fullmatch(HASH, entry):
        return parse_hashes([entry])
    path = _absolute(entry)
    check_allowed(path, "corpus.exclude_documents")
    try:
        lines = path.read_bytes().decode("utf-8-sig", errors="replace").split()
    except OSError as error:
        raise ConfigError(
            f"corpus.exclude_documents: {entry} is neither a document hash (16 hexadecimal digits) nor a file of "
            f"hashes or documents: {error}"
        ) from None
    if not lines or not re.fullmatch(HASH, lines[0]):
        file = SourceFile(str(path), *HashIndex(None).size_and_hash(str(path)))
        return np.array([document.hash for document in read_documents(file, config, Ledger())], np.uint64)
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(HASH, line):
            raise ConfigError(
                f"corpus.exclude_documents: word {number} of {entry} is not a hash of 16 hexadecimal digits, as the "
                "first word is: give one hash a line"
            )
    return parse_hashes(lines)
