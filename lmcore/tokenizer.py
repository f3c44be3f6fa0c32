"""Text to ids and back: train a tokenizer, or load one; either way a sealed folder that transformers opens.

The default family is BPE, because for it alone plain transformers is exact in both directions;
sentencepiece_model.py says why. byte_bpe.py is another family that is.
"""

import heapq
import json
import re
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import sentencepiece

from lmcore.byte_bpe import spelt_in_bytes, train_byte_bpe
from lmcore.config import CorpusConfig, TokenizerConfig
from lmcore.corpus import Corpus, scan_again
from lmcore.documents import Document, read_documents
from lmcore.errors import CorpusError, TokenizerError
from lmcore.index import Index
from lmcore.ledger import Ledger
from lmcore.section import fingerprint, result_fields
from lmcore.sentencepiece_model import (
    MODEL_FILE,
    cut,
    has_exact_json,
    neighbours,
    read_model,
    save_model,
    tokenizers_bpe,
    train_model,
)
from lmcore.store import (
    FORMAT_VERSION,
    Output,
    hash_file,
    is_whole,
    open_sealed,
    read_manifest,
    sealed_folder,
)
from lmcore.transformers_view import check_in_transformers, open_in_transformers, save_loaded

_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)


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
        open_sealed(self.folder)


def identify(config: TokenizerConfig, corpus: Corpus) -> str:
    """The id that ``make_tokenizer`` will give, found without making anything.

    Raises TokenizerError when config.source leads to no tokenizer, ConnectionError when the hub does not answer.
    """
    if config.source == "train":
        return fingerprint(FORMAT_VERSION, result_fields(config), corpus.id)
    source = _locate(config.source)
    files = [source] if source.is_file() else _tokenizer_files(source)
    return fingerprint(FORMAT_VERSION, sorted([file.name, hash_file(file)] for file in files))


def make_tokenizer(config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, store: Path) -> TokenizerInfo:
    """Train or load the tokenizer into ``store``, or return the one that is there already.

    Raises TokenizerError (no tokenizer there, or none that fits the settings), CorpusError, and ConnectionError
    when the hub does not answer.
    """
    tokenizer_id = identify(config, corpus)
    folder = store / "tokenizers" / tokenizer_id
    if not is_whole(folder):
        about: dict[str, Any] = {"kind": "tokenizer", "id": tokenizer_id, "source": config.source}
        with sealed_folder(folder, lambda: about) as temporary:
            if config.source == "train":
                about |= _train(config, corpus_config, corpus, temporary)
            else:
                about |= _load(_locate(config.source), temporary)
    if config.source != "train":
        _require_special_tokens(config, folder)
    return TokenizerInfo.open(folder)


class Tokenizer:
    """Text to ids and back. Text never becomes a control id, whatever it spells.

    ``about`` is for a folder outside the store, an export's: what else the manifest says of ids.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None) -> None:
        manifest = about or read_manifest(folder)
        self.id: str = manifest["id"]
        self.vocab_size: int = manifest["vocab_size"]
        self.eos_id: int = manifest["eos_id"]
        self.pad_id: int = manifest["pad_id"]
        self._sentencepiece = None
        self._joined: frozenset[str] = frozenset()
        if (folder / MODEL_FILE).exists():
            self._sentencepiece = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
            self._joined = neighbours(read_model(folder / MODEL_FILE))
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


def _train(config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, folder: Path) -> dict[str, Any]:
    texts, corpus_bytes = _training_texts(config, corpus_config, corpus, folder.parent.parent)
    if config.model_type == "byte_bpe":
        return {**train_byte_bpe(config, texts, folder), "corpus_bytes": corpus_bytes}
    proto, seen_bytes = train_model(config, texts)
    return {
        **save_model(proto, folder, texts[:256]),
        "corpus_bytes": corpus_bytes,
        "seen_bytes": seen_bytes,
    }


def _training_texts(
    config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, store: Path
) -> tuple[list[str], int]:
    """Training documents in the order of their hashes, and the bytes of all there are.

    Above max_train_bytes the ones with the lowest hashes: the same whatever the order of files.
    """
    with Index(store) as index:
        found = scan_again(corpus_config, corpus, index.hash_of)
    fraction = 0.0 if corpus_config.validation_paths else corpus_config.validation_fraction
    heap: list[tuple[int, int, str]] = []
    total = kept = 0
    for file in found.files:
        for document in read_documents(file, corpus_config, Ledger()):
            if document.is_validation(fraction):
                continue
            total += document.text_bytes
            kept += document.text_bytes
            heapq.heappush(heap, _by_highest_hash(document))
            while kept > config.max_train_bytes and len(heap) > 1:
                kept -= heapq.heappop(heap)[1]
    if not heap:
        raise CorpusError(
            f"no training text in {found.files[0].path if found.files else corpus_config.paths}"
            f"{' and the other files' if len(found.files) > 1 else ''}: every document is empty, "
            "unreadable as UTF-8, or held out for validation. Is it UTF-8? (iconv converts, for example "
            "from SHIFT_JIS)"
        )
    return [text for _, _, text in sorted(heap, reverse=True)], total


def _by_highest_hash(document: Document) -> tuple[int, int, str]:
    return -document.hash, document.text_bytes, document.text


# --- loading ---


def _locate(source: str) -> Path:
    """The file or folder of a source; a hub name is fetched (or found in the hub's cache) first."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    looks_like_path = source.count("/") > 1 or source.startswith((".", "/", "~"))
    if looks_like_path or source.endswith(".model"):
        raise TokenizerError(f"tokenizer.source: {source} does not exist (looked in {Path.cwd()})")
    return _from_hub(source)


@cache  # the stages of a run ask more than once, and are to find the same
def _from_hub(name: str) -> Path:
    """The hub's folder of that name. Its "no" is final; no answer at all is a ConnectionError, to be tried again."""
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*_TOKENIZER_FILES, "config.json"]))
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.HFValidationError, errors.HTTPError) as error:
        if _is_no_answer(error):
            raise ConnectionError(f"tokenizer.source: the hub did not answer for {name}: {error}") from error
        raise TokenizerError(
            f"tokenizer.source: {name} is no file or folder here, and no tokenizer of that name came "
            f"from the hub ({type(error).__name__}). Give train, a .model file, a folder or a hub name"
        ) from error


def _is_no_answer(error: BaseException) -> bool:
    """True for a broken connection and a server in trouble; False for "no", and where the hub is switched off."""
    from huggingface_hub import errors

    if isinstance(
        error, errors.LocalEntryNotFoundError
    ):  # not in the cache either; its cause says why the hub gave none
        cause = error.__cause__
        return cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled) and _is_no_answer(cause)
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return not isinstance(error, errors.HFValidationError)


def _tokenizer_files(folder: Path) -> list[Path]:
    files = sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})
    if not files:
        raise TokenizerError(f"tokenizer.source: {folder} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)})")
    return files


def _load(source: Path, folder: Path) -> dict[str, Any]:
    loaded = {"corpus_bytes": 0, "seen_bytes": 0}
    if source.is_file():
        return save_model(read_model(source), folder, []) | loaded
    if (source / MODEL_FILE).exists() and _is_sentencepiece_folder(source):
        return save_model(read_model(source / MODEL_FILE), folder, []) | loaded
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
        "vocab_size": len(tokenizer),
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


def _is_sentencepiece_folder(folder: Path) -> bool:
    """True when the .model file says what transformers reads in this folder, no more and no less."""
    config, view = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "tokenizer.json")
    if config.get("tokenizer_class") == "SentencePieceBackend" or not (config or view):
        return True
    proto = read_model(folder / MODEL_FILE)
    return has_exact_json(proto) and view.get("model") == json.loads(tokenizers_bpe(proto).to_str())["model"]


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is no file."""
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise TokenizerError(f"tokenizer.source: {path} is damaged: {error}") from error
    return content
