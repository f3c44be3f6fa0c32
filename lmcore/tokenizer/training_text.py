"""Choose the documents of a corpus that a tokenizer is trained on."""

import heapq
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from lmcore.corpus.corpus_warnings import skip_causes
from lmcore.corpus.document_hashes import forgotten_hashes, is_validation
from lmcore.corpus.documents import Document
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.listing import Corpus, corpus_files, excluded_hashes
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import Scan
from lmcore.errors import CorpusError, FileChangedError
from lmcore.markdown import byte_size
from lmcore.progress import Update
from lmcore.settings.config import CorpusConfig


def training_texts(
    max_bytes: int, config: CorpusConfig, corpus: Corpus, store: Path, progress: Update
) -> tuple[list[str], int]:
    """Training documents in the order of their hashes, and the bytes of all training documents of the corpus.

    Above ``max_bytes`` the documents with the lowest hashes are chosen, whatever the order of files. Documents that the
    dataset leaves out are left out, but copies beyond ``max_bytes`` count as bytes.
    """
    with HashIndex(store) as index:
        found = corpus_files(corpus, config, store, index)
        ledger = Ledger()
        ledger.skip_files(found.skipped)
        held_out = {document.hash for document in _documents(found.validation_files, config, index, ledger)}
        held_out |= {*excluded_hashes(config).tolist(), *forgotten_hashes(store).tolist()}
        fraction = 0.0 if config.validation_paths else config.validation_fraction
        sample = _LowestHashes(max_bytes)
        total = 0
        for document in _documents(found.files, config, index, ledger):
            fits = config.min_bytes <= document.text_bytes <= config.max_bytes
            is_copy = config.deduplicate and document.hash in sample
            if not fits or is_copy or document.hash in held_out or is_validation(document.hash, fraction):
                continue
            total += document.text_bytes
            progress(0, 0, f"reading text, {byte_size(total)} so far")
            sample.add(document)
    texts = sample.texts()
    if not texts:
        raise _no_text(found, config, ledger)
    return texts, total


class _LowestHashes:
    """The documents with the lowest hashes, up to a number of bytes, but at least one."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._heap: list[tuple[int, int, str]] = []
        self._hashes: set[int] = set()
        self._limit = 2**64
        """Documents with this hash or a higher one do not fit."""

    def __contains__(self, hash_: int) -> bool:
        return hash_ in self._hashes

    def add(self, document: Document) -> None:
        if document.hash >= self._limit:
            return
        self._bytes += len(document.utf8)
        self._hashes.add(document.hash)
        heapq.heappush(self._heap, (-document.hash, len(document.utf8), document.text))
        while self._bytes > self._max_bytes and len(self._heap) > 1:
            highest, size, _ = heapq.heappop(self._heap)
            self._bytes, self._limit = self._bytes - size, -highest
            self._hashes.discard(self._limit)

    def texts(self) -> list[str]:
        return [text for _, _, text in sorted(self._heap, reverse=True)]


def _no_text(found: Scan, config: CorpusConfig, ledger: Ledger) -> CorpusError:
    others = " and the other files" if len(found.files) > 1 else ""
    return CorpusError(
        f"no training text in {found.files[0].path if found.files else config.paths}{others}: "
        f"{'; '.join(skip_causes(ledger, config))}; {ledger.documents:,} documents are held out for validation or left "
        "out by settings"
    )


def _documents(files: list[SourceFile], config: CorpusConfig, index: HashIndex, ledger: Ledger) -> Iterator[Document]:
    for file in files:
        try:
            yield from read_documents(file, config, ledger)
        except FileChangedError:
            with suppress(OSError, FileChangedError):
                index.size_and_hash(file.path, rehash=True)  # the next start uses the new hash
            raise
