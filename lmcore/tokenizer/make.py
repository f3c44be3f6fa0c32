"""Make a tokenizer: train it on a corpus, or load it. Either way it is an artifact that transformers opens."""

import heapq
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from lmcore.corpus.corpus_warnings import skip_causes
from lmcore.corpus.document_hashes import forgotten_hashes, is_validation
from lmcore.corpus.documents import Document
from lmcore.corpus.formats import SourceFile
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.listing import Corpus, corpus_files, excluded_hashes
from lmcore.corpus.readers import read_documents
from lmcore.errors import CorpusError, FileChangedError, TokenizerError
from lmcore.markdown import byte_size
from lmcore.progress import Update, unwatched
from lmcore.settings.config import CorpusConfig, TokenizerConfig
from lmcore.settings.section import fingerprint, result_fields
from lmcore.store.artifacts import FORMAT_VERSION, find_artifact, write_artifact
from lmcore.store.files import hash_file
from lmcore.store.hub import resolve
from lmcore.tokenizer.byte_bpe import train_byte_bpe
from lmcore.tokenizer.sentencepiece_model import read_model, save_model, sentencepiece_of, train_model
from lmcore.tokenizer.tokenizer import TOKENIZER_FILES, TokenizerInfo
from lmcore.tokenizer.transformers_view import check_in_transformers, open_in_transformers, save_loaded

TRAINING_VERSION = 2
"""Version of the training rules. Another version gives other pieces for the same text and settings."""


def tokenizer_inputs(config: TokenizerConfig, corpus: Corpus) -> dict[str, Any]:
    """Everything that ``make_tokenizer`` depends on. Raises the errors of ``identify``."""
    if config.source == "train":
        return {"corpus": corpus.id, "tokenizer": result_fields(config), "training_version": TRAINING_VERSION}
    return {"tokenizer": {"source": identify(config, corpus)}}


def identify(config: TokenizerConfig, corpus: Corpus) -> str:
    """The id of the tokenizer that ``make_tokenizer`` returns; nothing is made.

    Raises TokenizerError if there is no tokenizer at config.source, ConnectionError if the hub does not answer.
    """
    if config.source == "train":
        return fingerprint(FORMAT_VERSION, TRAINING_VERSION, result_fields(config), corpus.id)
    return identify_files(_resolve(config.source))


def identify_files(source: Path) -> str:
    """The id of a .model file or of the tokenizer in a folder. Raises TokenizerError if the folder holds none."""
    files = {source} if source.is_file() else {file for pattern in TOKENIZER_FILES for file in source.glob(pattern)}
    if not files:
        raise TokenizerError(f"tokenizer.source: {source} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    return fingerprint(FORMAT_VERSION, sorted([file.name, hash_file(file)] for file in files))


def make_tokenizer(
    config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, store: Path, progress: Update = unwatched
) -> TokenizerInfo:
    """The tokenizer in ``store``, trained or loaded if it is not there yet.

    Raises TokenizerError if there is no tokenizer or none that fits the settings, CorpusError if there is no text, and
    ConnectionError if the hub does not answer.
    """
    tokenizer_id = identify(config, corpus)
    folder = store / "tokenizers" / tokenizer_id
    if not find_artifact(folder):
        about: dict[str, Any] = {"kind": "tokenizer", "id": tokenizer_id, "source": config.source}
        with write_artifact(folder, lambda: about) as temporary:
            if config.source == "train":
                about |= _train(config, corpus_config, corpus, temporary, progress)
            else:
                about |= _load(_resolve(config.source), temporary) | {"corpus_bytes": 0, "seen_bytes": 0}
    if config.source != "train" and config.special_tokens:
        _require_special_tokens(config, folder)
    return TokenizerInfo.open(folder)


def _train(
    config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, folder: Path, progress: Update
) -> dict[str, Any]:
    texts, corpus_bytes = _training_texts(config, corpus_config, corpus, folder.parent.parent, progress)
    progress(0, 0, f"training {config.vocab_size:,} pieces on {len(texts):,} documents")
    if config.model_type == "byte_bpe":
        return {**train_byte_bpe(config, texts, folder), "corpus_bytes": corpus_bytes}
    proto, seen_bytes = train_model(config, texts)
    return {**save_model(proto, folder, texts[:256]), "corpus_bytes": corpus_bytes, "seen_bytes": seen_bytes}


def _resolve(source: str) -> Path:
    """The file or folder of a tokenizer.source."""
    return resolve(source, "tokenizer.source", "tokenizer", (*TOKENIZER_FILES, "config.json"), TokenizerError)


def _load(source: Path, folder: Path) -> dict[str, Any]:
    proto = read_model(source) if source.is_file() else sentencepiece_of(source)
    if proto is not None:
        return save_model(proto, folder, [])
    tokenizer = open_in_transformers(source)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise TokenizerError(
            f"tokenizer.source: {source} has no tokenizer.json, and {type(tokenizer).__name__} has no fast "
            "form: give the SentencePiece .model file itself"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(f"tokenizer.source: {source} has no end-of-text token (eos_token)")
    theirs, pad_id = tokenizer.backend_tokenizer, tokenizer.pad_token_id
    save_loaded(tokenizer, folder)
    theirs.encode_special_tokens = True
    check_in_transformers(folder, lambda text: theirs.encode(text).ids, [])
    return {
        "model_type": "tokenizers",
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,  # some ids may be unused
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.eos_token_id if pad_id is None else pad_id,
    }


def _require_special_tokens(config: TokenizerConfig, folder: Path) -> None:
    missing = set(config.special_tokens) - set(open_in_transformers(folder).all_special_tokens)
    if missing:
        raise TokenizerError(
            f"tokenizer.special_tokens: {', '.join(sorted(missing))} is not a control token of {config.source}, "
            "and a loaded tokenizer gets no new ones. Train a tokenizer, or leave special_tokens empty"
        )


# --- the text that a tokenizer is trained on ---


def _training_texts(
    tokenizer: TokenizerConfig, config: CorpusConfig, corpus: Corpus, store: Path, progress: Update
) -> tuple[list[str], int]:
    """Training documents in the order of their hashes, and the bytes of all training documents of the corpus.

    Above tokenizer.max_train_bytes the documents with the lowest hashes are chosen, whatever the order of files. What
    the dataset leaves out is left out, but copies of documents that are not chosen count as bytes.
    """
    with HashIndex(store) as index:
        found = corpus_files(corpus, config, store, index)
        ledger = Ledger()
        ledger.skip_files(found.skipped)
        held_out = {document.hash for document in _documents(found.validation_files, config, index, ledger)}
        held_out |= {*excluded_hashes(config).tolist(), *forgotten_hashes(store).tolist()}
        fraction = 0.0 if config.validation_paths else config.validation_fraction
        sample = _LowestHashes(tokenizer.max_train_bytes)
        total = 0
        for document in _documents(found.files, config, index, ledger):
            fits = config.min_bytes <= document.text_bytes <= config.max_bytes
            is_copy = config.deduplicate and document.hash in sample
            if not fits or is_copy or document.hash in held_out or is_validation(document.hash, fraction):
                continue
            total += document.text_bytes
            progress(0, 0, f"reading text, {byte_size(total)} so far")
            sample.add(document)
    if not total:
        others = " and the other files" if len(found.files) > 1 else ""
        raise CorpusError(
            f"no training text in {found.files[0].path if found.files else config.paths}{others}: "
            f"{'; '.join(skip_causes(ledger, config))}; {ledger.documents:,} documents are held out for validation or "
            "left out by settings"
        )
    return sample.texts(), total


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


def _documents(files: list[SourceFile], config: CorpusConfig, index: HashIndex, ledger: Ledger) -> Iterator[Document]:
    for file in files:
        try:
            yield from read_documents(file, config, ledger)
        except FileChangedError:
            with suppress(OSError, FileChangedError):
                index.size_and_hash(file.path, rehash=True)  # the next start uses the new hash
            raise
