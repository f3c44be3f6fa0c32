"""Text to ids and back: train a tokenizer, or load one; either way a sealed folder that transformers opens.

The default family is BPE, because for it alone plain transformers is exact in both directions;
sentencepiece_model.py says why. byte_bpe.py is another family that is.
"""

import heapq
import json
import re
import unicodedata
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import sentencepiece

from lmcore.corpus.corpus_warnings import causes
from lmcore.corpus.documents import Document, read_documents
from lmcore.corpus.exclusions import excluded_hashes, forgotten_hashes
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.scan import Corpus, SourceFile, scan_again
from lmcore.errors import CorpusError, FileChangedError, TokenizerError
from lmcore.progress import Update, unwatched
from lmcore.settings.config import CorpusConfig, TokenizerConfig
from lmcore.settings.section import fingerprint, result_fields
from lmcore.store.artifacts import FORMAT_VERSION, find_artifact, read_manifest, verify_artifact, write_artifact
from lmcore.store.files import hash_file
from lmcore.store.hub import resolve
from lmcore.store.outputs import Output
from lmcore.tokenizer.byte_bpe import spelt_in_bytes, train_byte_bpe
from lmcore.tokenizer.sentencepiece_model import (
    MODEL_FILE,
    SPIECE_FILE,
    cut,
    has_exact_json,
    neighbours,
    read_model,
    save_model,
    tokenizers_bpe,
    train_model,
    with_real_spaces,
)
from lmcore.tokenizer.transformers_view import check_in_transformers, open_in_transformers, save_loaded

TRAINING_VERSION = 2
"""Of the rules by which tokenizers are trained: the same text and settings give other pieces by others."""

TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
"""Files that make up a tokenizer, in a folder of transformers."""
_SENTENCEPIECE_CLASSES = ("SentencePieceBackend", "BertGenerationTokenizer")
"""Of transformers, which add nothing to what a SentencePiece model does."""


class TokenizerInfo(Output):
    """A tokenizer in the store."""

    id: str
    folder: Path
    source: str
    model_type: str
    vocab_size: int
    eos_id: int
    pad_id: int
    corpus_bytes: int
    """Bytes of text it could have been trained on; 0 for a loaded one."""
    seen_bytes: int
    """Bytes of text the trainer saw."""
    transformers_exact: bool
    """transformers gave the same ids, and decoded them to the text, on every text tried."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The tokenizer in a folder of the store. Raises StoreError when there is none."""
        manifest = read_manifest(folder)
        fields = {name: manifest[name] for name in cls.model_fields if name != "folder"}
        return cls(folder=folder, **fields)

    def verify(self) -> None:
        verify_artifact(self.folder)


def tokenizer_inputs(config: TokenizerConfig, corpus: Corpus) -> dict[str, Any]:
    """Everything that ``make_tokenizer`` depends on. Raises as ``identify`` does."""
    if config.source == "train":
        return {"corpus": corpus.id, "tokenizer": result_fields(config), "training_version": TRAINING_VERSION}
    return {"tokenizer": {"source": identify(config, corpus)}}


def identify(config: TokenizerConfig, corpus: Corpus) -> str:
    """The id that ``make_tokenizer`` will give, found without making anything.

    Raises TokenizerError when config.source leads to no tokenizer, ConnectionError when the hub does not answer.
    """
    if config.source == "train":
        return fingerprint(FORMAT_VERSION, TRAINING_VERSION, result_fields(config), corpus.id)
    return identify_files(_locate(config.source))


def identify_files(source: Path) -> str:
    """The id of a tokenizer that is there: a .model file, or a folder. Raises TokenizerError when it holds none."""
    files = [source] if source.is_file() else _tokenizer_files(source)
    return fingerprint(FORMAT_VERSION, sorted([file.name, hash_file(file)] for file in files))


def make_tokenizer(
    config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, store: Path, progress: Update = unwatched
) -> TokenizerInfo:
    """Train or load the tokenizer into ``store``, or return the one that is there already.

    Raises TokenizerError (no tokenizer there, or none that fits the settings), CorpusError, and ConnectionError
    when the hub does not answer.
    """
    tokenizer_id = identify(config, corpus)
    folder = store / "tokenizers" / tokenizer_id
    if not find_artifact(folder):
        about: dict[str, Any] = {"kind": "tokenizer", "id": tokenizer_id, "source": config.source}
        with write_artifact(folder, lambda: about) as temporary:
            if config.source == "train":
                about |= _train(config, corpus_config, corpus, temporary, progress)
            else:
                about |= _load(_locate(config.source), temporary)
    if config.source != "train":
        _require_special_tokens(config, folder)
    return TokenizerInfo.open(folder)


class Tokenizer:
    """Text to ids and back. Text never becomes a control id, whatever it spells.

    ``about`` is for a folder outside the store, an export's: what else the manifest says of ids. ``normalize`` is the
    Unicode normalization of the text that the model was trained on, which every text gets first.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None, normalize: str = "") -> None:
        manifest = about or read_manifest(folder)
        self.id: str = manifest["id"]
        self.vocab_size: int = manifest["vocab_size"]
        self.eos_id: int = manifest["eos_id"]
        self.pad_id: int = manifest["pad_id"]
        self._sentencepiece = None
        self._joined: frozenset[str] = frozenset()
        self._normalize: Any = normalize
        if (proto := sentencepiece_of(folder) if about else _of_store(folder)) is not None:
            self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
            self._joined = neighbours(proto)
        else:
            self._fast = open_in_transformers(folder).backend_tokenizer
            self._fast.encode_special_tokens = True

    @property
    def dtype(self) -> npt.DTypeLike:
        """uint16 where the ids fit, else uint32."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def encode_flat(self, texts: list[bytes], threads: int = -1) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The ids of all texts (UTF-8) in one array, an EOS after every one, and the number of ids of each with it.

        ``threads`` -1: one for each core. A tokenizer.json always takes them all (RAYON_NUM_THREADS limits it).
        """
        if self._normalize:
            texts = [unicodedata.normalize(self._normalize, text.decode()).encode() for text in texts]
        parts = [cut(text, self._joined) for text in texts]
        arrays = self._encode([part for text in parts for part in text], threads)
        ends = np.cumsum([0, *map(len, arrays)])[np.cumsum([0, *map(len, parts)])]
        eos = np.array([self.eos_id], self.dtype)
        pieces = [np.empty(0, self.dtype)]
        remaining = iter(arrays)
        for part in parts:
            pieces += [*islice(remaining, len(part)), eos]
        return np.concatenate(pieces, dtype=self.dtype, casting="unsafe"), np.diff(ends) + 1

    def _encode(self, texts: list[bytes], threads: int) -> list[npt.NDArray[Any]]:
        if self._sentencepiece is not None:
            arrays: list[npt.NDArray[Any]] = self._sentencepiece.encode(texts, return_type="numpy", num_threads=threads)
            return arrays
        encodings = self._fast.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def encode_batch(self, texts: list[str], threads: int = -1) -> list[npt.NDArray[Any]]:
        """One array of ids a text, without special ids. ``threads`` -1: one for each core."""
        ids, lengths = self.encode_flat([text.encode() for text in texts], threads)
        return [part[:-1] for part in np.split(ids, np.cumsum(lengths)[:-1])] if texts else []

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without special ids."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special ids give nothing."""
        if self._sentencepiece is not None:
            return str(self._sentencepiece.decode(ids))
        return str(self._fast.decode(ids, skip_special_tokens=True))

    @property
    def unknown_id(self) -> int | None:
        """The id of text that no piece can spell; none where there is no such text."""
        if self._sentencepiece is not None:
            return int(self._sentencepiece.unk_id())
        name = getattr(self._fast.model, "unk_token", None)
        return None if name is None else self._fast.token_to_id(name)

    def pieces(self) -> list[bytes]:
        """The UTF-8 bytes that each id stands for: part of a character for a byte piece, none for a control id."""
        if self._sentencepiece is not None:
            control, names = (
                self._sentencepiece.is_control,
                self._sentencepiece.id_to_piece(list(range(self.vocab_size))),
            )
            return [b"" if control(i) or i == self.unknown_id else _spelt(name) for i, name in enumerate(names)]
        found = [b""] * self.vocab_size
        added = self._fast.get_added_tokens_decoder()
        byte_level = "ByteLevel" in json.dumps(json.loads(self._fast.to_str())["decoder"])
        spell = spelt_in_bytes if byte_level else _spelt
        for name, i in self._fast.get_vocab().items():
            if i != self.unknown_id and not (i in added and added[i].special):
                found[i] = name.encode() if i in added else spell(name)
        return found


def _spelt(piece: str) -> bytes:
    """The bytes of a SentencePiece piece, or of one in its manner."""
    is_byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(is_byte[1]) if is_byte else piece.replace("\u2581", " ").encode()


# --- training ---


def _train(
    config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, folder: Path, progress: Update
) -> dict[str, Any]:
    texts, corpus_bytes = _training_texts(config, corpus_config, corpus, folder.parent.parent, progress)
    progress(0, 0, f"training {config.vocab_size:,} pieces on {len(texts):,} documents")
    if config.model_type == "byte_bpe":
        return {**train_byte_bpe(config, texts, folder), "corpus_bytes": corpus_bytes}
    proto, seen_bytes = train_model(config, texts)
    return {
        **save_model(proto, folder, texts[:256]),
        "corpus_bytes": corpus_bytes,
        "seen_bytes": seen_bytes,
    }


def _training_texts(
    config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, store: Path, progress: Update
) -> tuple[list[str], int]:
    """Training documents in the order of their hashes, and the bytes of all there are.

    Above max_train_bytes the ones with the lowest hashes: the same whatever the order of files. What the dataset
    leaves out is left out here (but the bytes of all there are count copies of what is beyond max_train_bytes).
    """
    with HashIndex(store) as index:
        found = scan_again(corpus_config, corpus, index.hash_of, index.known)
        account = Ledger()
        account.leave_out(found.skipped)
        held_out = {document.hash for document in _documents(found.validation_files, corpus_config, index, account)}
        held_out |= {*excluded_hashes(corpus_config), *forgotten_hashes(store).tolist()}
        fraction = 0.0 if corpus_config.validation_paths else corpus_config.validation_fraction
        heap: list[tuple[int, int, str]] = []
        chosen: set[int] = set()
        total = kept = 0
        end = 2**64
        """Hashes from here on are beyond max_train_bytes."""
        for document in _documents(found.files, corpus_config, index, account):
            fits = corpus_config.min_bytes <= document.text_bytes <= corpus_config.max_bytes
            is_copy = corpus_config.deduplicate and document.hash in chosen
            if not fits or is_copy or document.hash in held_out or document.is_validation(fraction):
                continue
            total += document.text_bytes
            progress(0, 0, f"reading text, {total / 1e6:,.1f} MB so far")
            if document.hash >= end:
                continue
            kept += len(document.utf8)
            chosen.add(document.hash)
            heapq.heappush(heap, (-document.hash, len(document.utf8), document.text))
            while kept > config.max_train_bytes and len(heap) > 1:
                highest, size, _ = heapq.heappop(heap)
                kept, end = kept - size, -highest
                chosen.discard(end)
    if not heap:
        raise CorpusError(
            f"no training text in {found.files[0].path if found.files else corpus_config.paths}"
            f"{' and the other files' if len(found.files) > 1 else ''}: {'; '.join(causes(account, corpus_config))}; "
            f"{account.documents:,} documents are held out for validation or left out by settings"
        )
    return [text for _, _, text in sorted(heap, reverse=True)], total


def _documents(files: list[SourceFile], config: CorpusConfig, index: HashIndex, account: Ledger) -> Iterator[Document]:
    for file in files:
        try:
            yield from read_documents(file, config, account)
        except FileChangedError:
            index.corrected(file.path, file.digest)  # so that the next start sees it as it is
            raise


# --- loading ---


def _locate(source: str) -> Path:
    """The file or folder of a source."""
    return resolve(source, "tokenizer.source", "tokenizer", (*TOKENIZER_FILES, "config.json"), TokenizerError)


def _tokenizer_files(folder: Path) -> list[Path]:
    files = sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)})
    if not files:
        raise TokenizerError(f"tokenizer.source: {folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    return files


def _load(source: Path, folder: Path) -> dict[str, Any]:
    loaded = {"corpus_bytes": 0, "seen_bytes": 0}
    if source.is_file():
        return save_model(read_model(source), folder, []) | loaded
    if (proto := sentencepiece_of(source)) is not None:
        return save_model(proto, folder, []) | loaded
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
    return {
        "model_type": "tokenizers",
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,  # more than there are, where ids are left out
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.eos_token_id if pad_id is None else pad_id,
        "transformers_exact": check_in_transformers(folder, lambda text: theirs.encode(text).ids, []),
        **loaded,
    }


def _require_special_tokens(config: TokenizerConfig, folder: Path) -> None:
    if config.special_tokens:
        missing = set(config.special_tokens) - set(open_in_transformers(folder).all_special_tokens)
        if missing:
            raise TokenizerError(
                f"tokenizer.special_tokens: {', '.join(sorted(missing))} is no control token of {config.source}, and "
                "a tokenizer that is loaded gets none. Train one, or leave special_tokens empty"
            )


def _of_store(folder: Path) -> Any:
    return read_model(folder / MODEL_FILE) if (folder / MODEL_FILE).exists() else None


def sentencepiece_of(folder: Path) -> Any:
    """The SentencePiece model that says what transformers reads in a folder, no more and no less; None for none."""
    config, view = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "tokenizer.json")
    files = [folder / name for name in (SPIECE_FILE, MODEL_FILE) if (folder / name).exists()]
    if not files or (config and not view and config.get("tokenizer_class") not in _SENTENCEPIECE_CLASSES):
        return None
    proto = read_model(files[0])
    return _same_model(proto, view) if view else proto


def _same_model(proto: Any, view: dict[str, Any]) -> Any:
    """The model, spelt with spaces as the tokenizer.json is; None when that says something else."""
    if not has_exact_json(proto):
        return None
    if view.get("normalizer") is None:
        proto = with_real_spaces(proto)
    said = json.loads(tokenizers_bpe(proto).to_str())
    return proto if all(view.get(name) == said[name] for name in ("model", "normalizer")) else None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no file."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TokenizerError(f"tokenizer.source: {path} is damaged: {error}") from error
    return content
