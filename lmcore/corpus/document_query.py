"""Find documents that a person names: by one hash, or by a file that is cut as a dataset cut its corpus.

A file of lines holds many documents, so each answer gives the number of documents that were found. The text of a file
can also be one document of a dataset, however that dataset cuts files.
"""

import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmcore.corpus.document_hashes import HASH, Hashes, isin_sorted, parse_hashes
from lmcore.corpus.formats import SourceFile, advice
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import format_of
from lmcore.errors import CorpusError
from lmcore.settings.config import CorpusConfig
from lmcore.store.allowed_paths import check_allowed
from lmcore.store.files import hash_file, hash_text

_CUT_SETTINGS = ("document", "text_field", "normalize", "max_document_bytes", "max_expansion")


@dataclass(frozen=True)
class Match:
    """The documents that were found and those that were not."""

    found: Hashes
    missing: Hashes

    @property
    def documents(self) -> int:
        return len(self.found) + len(self.missing)

    def __str__(self) -> str:
        return f"{len(self.found):,} of {self.documents:,} documents"


@dataclass(frozen=True, eq=False)
class Cut:
    """The documents of the file by one dataset's settings."""

    ways: list[Hashes]
    """The documents by the settings, sorted and unique. If corpus.document is auto, all other ways to cut follow: the
    dataset's file may have had another kind."""
    whole: Hashes
    """The hashes of the whole text as one document, without and with its last line end."""
    skipped: frozenset[bytes] = frozenset()
    """Pieces of the file that are in no document."""

    @property
    def hashes(self) -> Hashes:
        """All hashes that may name one of the documents, sorted."""
        return np.unique(np.concatenate([self.whole, *self.ways]))

    def match(self, present: Hashes) -> Match:
        """The documents among the hashes in ``present``, by the way to cut that finds most."""
        whole = np.intersect1d(self.whole, present)
        matches = [Match(np.intersect1d(way, present), np.setdiff1d(way, present)) for way in self.ways]
        best = max(matches, key=lambda match: len(match.found))
        return Match(whole, whole[:0]) if len(whole) and len(best.found) <= 1 else best


class DocumentQuery:
    """The documents that ``seen-by`` and ``forget`` look for."""

    def __init__(self, hash_or_file: str) -> None:
        """Raises CorpusError for text that is neither a hash nor a file."""
        path = Path(hash_or_file).expanduser()
        self._hash, self._path = hash_or_file, path.absolute() if path.is_file() else None
        self._cuts: dict[str, Cut] = {}
        if self._path is not None:
            check_allowed(self._path, "document")
        elif not re.fullmatch(HASH, hash_or_file):
            raise CorpusError(f"{hash_or_file} is neither a document hash (16 hexadecimal digits) nor a file")

    @property
    def cuts(self) -> list[Cut]:
        """The cuts that ``cut`` returned so far."""
        return list(self._cuts.values())

    def cut(self, corpus: dict[str, Any]) -> Cut:
        """The documents as a dataset with these corpus settings cuts them."""
        settings = {name: corpus[name] for name in _CUT_SETTINGS if name in corpus}
        key = json.dumps(settings, sort_keys=True)
        if key not in self._cuts:
            self._cuts[key] = self._new_cut(CorpusConfig.model_validate(settings))
        return self._cuts[key]

    def is_in(self, piece: bytes) -> bool:
        """Whether a piece of a corpus is one of the documents, a piece of the file, or contains its whole text."""
        if not piece:
            return False
        names = np.array([hash_text(piece)], np.uint64)
        if any(isin_sorted(names, cut.hashes).any() or piece in cut.skipped for cut in self.cuts):
            return True
        text = self._path.read_bytes().rstrip(b"\r\n") if self._path else b""
        return bool(text.strip()) and text in piece

    def require_text(self) -> None:
        """Raise CorpusError if a corpus would not read the file, for example because it is EUC-JP."""
        if self._path is None:
            return
        with self._path.open("rb") as stream:
            found = format_of(stream, SourceFile(str(self._path), 0, ""))
        if found.problem:
            what = advice(found.problem, str(self._path), found.detail)
            raise CorpusError(f"{self._path} is {what or found.problem}. No document of it was found")

    def _new_cut(self, config: CorpusConfig) -> Cut:
        if self._path is None:
            return Cut([parse_hashes([self._hash])], np.empty(0, np.uint64))
        content, ledger = self._path.read_bytes(), Ledger()
        texts = (content.removesuffix(b"\n").removesuffix(b"\r"), content)
        whole = np.unique(np.array([hash_text(_normalized(text, config.normalize)) for text in texts], np.uint64))
        file = SourceFile(str(self._path), len(content), hash_file(self._path))
        ways = []
        for unit in ("auto", "line", "paragraph") if config.document == "auto" else (config.document,):
            documents = read_documents(file, config.model_copy(update={"document": unit}), ledger)
            ways.append(np.array(sorted({document.hash for document in documents}), np.uint64))
        skipped = frozenset(skip.content for skip in ledger.skipped)
        return Cut([way for way in ways if len(way)] or [whole[:1]], whole, skipped)


def _normalized(utf8: bytes, form: Any) -> bytes:
    return unicodedata.normalize(form, utf8.decode(errors="replace")).encode() if form else utf8
