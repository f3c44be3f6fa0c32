"""Train a SentencePiece tokenizer, or load one; either way a sealed folder that transformers opens.

The default family is BPE, because for it alone plain transformers is exact in both directions: the
folder's tokenizer.json gives sentencepiece's own ids and decodes them back to the text, byte for
byte. A unigram model gives sentencepiece's ids too, but transformers' wrapper decodes it with loss
(newlines, leading spaces, byte pieces); ``Tokenizer.decode`` here does not.

Training keeps every character (no normalization, byte pieces for the rest). SentencePiece writes a
space as U+2581 and so cannot tell the two apart; the trained model is rewritten to hold real
spaces, which makes a literal U+2581 survive as well.
"""

import heapq
import io
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from lmcore.config import CorpusConfig, TokenizerConfig, fingerprint, result_fields
from lmcore.documents import Corpus, Document, Ledger, read_documents, scan_again
from lmcore.errors import CorpusError, TokenizerError
from lmcore.store import (
    FORMAT_VERSION,
    Output,
    hash_file,
    is_whole,
    open_sealed,
    read_manifest,
    sealed_folder,
)

SPECIAL_PIECES = ("<pad>", "<unk>", "<s>", "</s>", "<cls>", "<sep>")
"""Ids 0 to 5 of a trained tokenizer."""

MODEL_FILE = "tokenizer.model"
_SPACE = "\u2581"
_MAX_SENTENCE_BYTES = 4096
# SentencePiece drops a sentence that holds a NUL or the mark it reserves for unknown pieces.
_UNTRAINABLE = re.compile("[\0\u2585]")
_TOKENIZER_FILES = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
_log = logging.getLogger(__name__)


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

    def verify(self) -> None:
        open_sealed(self.folder)


def identify(config: TokenizerConfig, corpus: Corpus) -> str:
    """The id that ``make_tokenizer`` will give, found without making anything.

    Raises TokenizerError when config.source leads to no tokenizer.
    """
    if config.source == "train":
        return fingerprint(FORMAT_VERSION, result_fields(config), corpus.id)
    source = _locate(config.source)
    files = [source] if source.is_file() else _tokenizer_files(source)
    return fingerprint(FORMAT_VERSION, sorted([file.name, hash_file(file)] for file in files))


def make_tokenizer(config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, store: Path) -> TokenizerInfo:
    """Train or load the tokenizer into ``store``, or return the one that is there already.

    Raises TokenizerError (no tokenizer there, or none that fits the settings) and CorpusError.
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
    manifest = read_manifest(folder)
    fields = {name: manifest[name] for name in TokenizerInfo.model_fields if name != "folder"}
    return TokenizerInfo(folder=folder, **fields)


class Tokenizer:
    """Text to ids and back. Text never becomes a control id, whatever it spells."""

    def __init__(self, folder: Path) -> None:
        manifest = read_manifest(folder)
        self.id: str = manifest["id"]
        self.vocab_size: int = manifest["vocab_size"]
        self.eos_id: int = manifest["eos_id"]
        self.pad_id: int = manifest["pad_id"]
        self._sentencepiece = None
        if (folder / MODEL_FILE).exists():
            self._sentencepiece = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
        else:
            self._fast = _open_in_transformers(folder).backend_tokenizer
            self._fast.encode_special_tokens = True

    @property
    def dtype(self) -> npt.DTypeLike:
        """uint16 where the ids fit, else uint32."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def encode_batch(self, texts: list[str], threads: int = -1) -> list[npt.NDArray[Any]]:
        """One array of ids a text, without special ids. ``threads`` -1: one for each core."""
        if self._sentencepiece is not None:
            arrays: list[npt.NDArray[Any]] = self._sentencepiece.encode(texts, return_type="numpy", num_threads=threads)
            return arrays
        encodings = self._fast.encode_batch_fast(texts, add_special_tokens=False)
        return [np.asarray(encoding.ids, dtype=np.int32) for encoding in encodings]

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without special ids."""
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids; special ids give nothing."""
        if self._sentencepiece is not None:
            return str(self._sentencepiece.decode(ids))
        return str(self._fast.decode(ids, skip_special_tokens=True))


# --- training ---


def _train(config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, folder: Path) -> dict[str, Any]:
    texts, corpus_bytes = _training_texts(config, corpus_config, corpus)
    seen = _Counter()
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=seen.count(_sentences(texts)),
            model_writer=model,
            model_type=config.model_type,
            vocab_size=config.vocab_size,
            hard_vocab_limit=False,
            character_coverage=config.character_coverage,
            num_threads=config.threads,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            control_symbols=list(SPECIAL_PIECES[4:]),
            normalization_rule_name="identity",
            byte_fallback=True,
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=2 * _MAX_SENTENCE_BYTES,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"SentencePiece could not train {config.vocab_size} pieces on {seen.bytes:,} bytes: {error}. "
            "More text, or another tokenizer.vocab_size, helps most often."
        ) from error
    proto = _with_real_spaces(model.getvalue())
    return {
        **_save_sentencepiece(proto, folder, texts[:256]),
        "corpus_bytes": corpus_bytes,
        "seen_bytes": seen.bytes,
    }


def _training_texts(config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus) -> tuple[list[str], int]:
    """Training documents in the order of their hashes, and the bytes of all there are.

    Above max_train_bytes the ones with the lowest hashes: the same whatever the order of files.
    """
    found = scan_again(corpus_config, corpus)
    fraction = 0.0 if corpus_config.validation_paths else corpus_config.validation_fraction
    heap: list[tuple[int, int, str]] = []
    total = kept = 0
    for file in found.files:
        for document in read_documents(file, corpus_config, Ledger()):
            if document.is_validation(fraction):
                continue
            total += len(document.utf8)
            kept += len(document.utf8)
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
    return -document.hash, len(document.utf8), document.text


def _sentences(texts: list[str]) -> Iterator[str]:
    """Lines with their ends, cut where SentencePiece would drop them for their length."""
    for text in texts:
        for line in text.splitlines(keepends=True):
            for part in _UNTRAINABLE.split(line):
                yield from _cut(part)


def _cut(line: str) -> Iterator[str]:
    if len(line) * 4 <= _MAX_SENTENCE_BYTES:
        if line:
            yield line
        return
    for start in range(0, len(line), _MAX_SENTENCE_BYTES // 4):
        yield line[start : start + _MAX_SENTENCE_BYTES // 4]


class _Counter:
    """Counts the bytes of the sentences that pass."""

    def __init__(self) -> None:
        self.bytes = 0

    def count(self, sentences: Iterator[str]) -> Iterator[str]:
        for sentence in sentences:
            self.bytes += len(sentence.encode())
            yield sentence


def _with_real_spaces(model: bytes) -> Any:
    proto = model_pb2.ModelProto()
    proto.ParseFromString(model)
    for piece in proto.pieces:
        if piece.type == piece.NORMAL:
            piece.piece = piece.piece.replace(_SPACE, " ")
    proto.normalizer_spec.escape_whitespaces = False
    return proto


# --- loading ---


def _locate(source: str) -> Path:
    """The file or folder of a source; a hub name is fetched (or found in the hub's cache) first."""
    path = Path(source).expanduser()
    if path.exists():
        return path
    looks_like_path = source.count("/") > 1 or source.startswith((".", "/", "~"))
    if looks_like_path or source.endswith(".model"):
        raise TokenizerError(f"tokenizer.source: {source} does not exist (looked in {Path.cwd()})")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(source, allow_patterns=[*_TOKENIZER_FILES, "config.json"]))
    except Exception as error:
        raise TokenizerError(
            f"tokenizer.source: {source} is no file or folder here, and no tokenizer of that name came "
            f"from the hub ({type(error).__name__}). Give train, a .model file, a folder or a hub name"
        ) from error


def _tokenizer_files(folder: Path) -> list[Path]:
    files = sorted({file for pattern in _TOKENIZER_FILES for file in folder.glob(pattern)})
    if not files:
        raise TokenizerError(f"tokenizer.source: {folder} holds no tokenizer (none of {', '.join(_TOKENIZER_FILES)})")
    return files


def _load(source: Path, folder: Path) -> dict[str, Any]:
    loaded = {"corpus_bytes": 0, "seen_bytes": 0}
    if source.is_file():
        return _save_sentencepiece(_read_model(source), folder, []) | loaded
    if (source / MODEL_FILE).exists() and _is_sentencepiece_folder(source):
        return _save_sentencepiece(_read_model(source / MODEL_FILE), folder, []) | loaded
    tokenizer = _open_in_transformers(source)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise TokenizerError(
            f"tokenizer.source: {source} has no tokenizer.json, and {type(tokenizer).__name__} has no fast "
            "form: give the SentencePiece .model file itself"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(f"tokenizer.source: {source} has no end-of-text token (eos_token)")
    tokenizer.save_pretrained(folder)
    pad_id = tokenizer.pad_token_id
    return {
        "model_type": "tokenizers",
        "vocab_size": len(tokenizer),
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.eos_token_id if pad_id is None else pad_id,
        "transformers_exact": True,
        **loaded,
    }


def _is_sentencepiece_folder(folder: Path) -> bool:
    """True when the .model file says what transformers reads in this folder, no more and no less."""
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    if config.get("tokenizer_class") == "SentencePieceBackend":
        return True
    proto = _read_model(folder / MODEL_FILE)
    if not _has_exact_json(proto) or not (folder / "tokenizer.json").exists():
        return False
    view = json.loads((folder / "tokenizer.json").read_bytes())
    return bool(view["model"] == json.loads(_tokenizers_bpe(proto).to_str())["model"])


def _read_model(path: Path) -> Any:
    proto = model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:
        raise TokenizerError(f"{path} is no SentencePiece model: {error}") from error
    if not proto.pieces:
        raise TokenizerError(f"{path} is no SentencePiece model: it has no pieces")
    return proto


def _open_in_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        raise TokenizerError(f"{folder} holds no tokenizer that transformers opens: {error}") from error


# --- saving: one .model file, and the view of it that transformers opens ---


def _save_sentencepiece(proto: Any, folder: Path, texts: list[str]) -> dict[str, Any]:
    trainer = proto.trainer_spec
    ids = {"unk": trainer.unk_id, "bos": trainer.bos_id, "eos": trainer.eos_id, "pad": trainer.pad_id}
    if ids["eos"] < 0:
        raise TokenizerError("this SentencePiece model has no end-of-text piece (eos_id is -1)")
    specials = {f"{name}_token": proto.pieces[i].piece for name, i in ids.items() if i >= 0}
    for name, piece in (("cls_token", "<cls>"), ("sep_token", "<sep>")):
        if any(entry.piece == piece and entry.type == entry.CONTROL for entry in proto.pieces):
            specials[name] = piece
    (folder / MODEL_FILE).write_bytes(proto.SerializeToString())
    if _has_exact_json(proto):
        from transformers import PreTrainedTokenizerFast

        PreTrainedTokenizerFast(
            tokenizer_object=_tokenizers_bpe(proto),
            split_special_tokens=True,
            clean_up_tokenization_spaces=False,
            **specials,
        ).save_pretrained(folder)
    else:
        config = {
            "tokenizer_class": "SentencePieceBackend",
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            **specials,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))
    return {
        "model_type": "bpe" if trainer.model_type == trainer.BPE else "unigram",
        "vocab_size": len(proto.pieces),
        "eos_id": ids["eos"],
        "pad_id": ids["pad"] if ids["pad"] >= 0 else ids["eos"],
        "transformers_exact": _check_in_transformers(folder, texts),
    }


def _has_exact_json(proto: Any) -> bool:
    """True if a tokenizer.json can say exactly what this model does."""
    normalizer = proto.normalizer_spec
    plain_types = {1, 2, 3, 6}  # normal, unknown, control and byte pieces
    return (
        proto.trainer_spec.model_type == proto.trainer_spec.BPE
        and proto.trainer_spec.byte_fallback
        and not normalizer.precompiled_charsmap
        and not normalizer.add_dummy_prefix
        and not normalizer.remove_extra_whitespaces
        and {piece.type for piece in proto.pieces} <= plain_types
    )


def _tokenizers_bpe(proto: Any) -> Any:
    """The same BPE model for the tokenizers library.

    SentencePiece joins the neighbours whose joint piece scores best, however that piece was made;
    so every split of a piece into two pieces is a merge, in the order of the pieces' scores.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import decoders, models, normalizers

    normal = {piece.piece: piece.score for piece in proto.pieces if piece.type == piece.NORMAL}
    merges = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in normal.items()
        for cut in range(1, len(piece))
        if piece[:cut] in normal and piece[cut:] in normal
    ]
    fast = FastTokenizer(
        models.BPE(
            vocab={piece.piece: index for index, piece in enumerate(proto.pieces)},
            merges=[(left, right) for _, left, right in sorted(merges)],
            unk_token=proto.pieces[proto.trainer_spec.unk_id].piece,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    if proto.normalizer_spec.escape_whitespaces:
        fast.normalizer = normalizers.Replace(" ", _SPACE)
        steps.insert(0, decoders.Replace(_SPACE, " "))
    fast.decoder = decoders.Sequence(steps)
    return fast


def _check_in_transformers(folder: Path, texts: list[str]) -> bool:
    """Compare transformers with sentencepiece on some texts; True if decoding is exact as well.

    Raises TokenizerError when the ids differ: a model trained on them would be fed other ids later.
    """
    ours = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    theirs = _open_in_transformers(folder)
    exact = True
    for text in [*(text[:20_000] for text in texts), *_PROBES]:
        ids = ours.encode(text)
        found = theirs.encode(text, add_special_tokens=False)
        if found != ids:
            raise TokenizerError(
                f"transformers gives other ids than sentencepiece for {text[:60]!r}: {found[:8]} instead of "
                f"{ids[:8]}. This model cannot be used through transformers"
            )
        exact = exact and theirs.decode(ids, clean_up_tokenization_spaces=False) == text
    return exact


_PROBES = [
    "a  b",
    " lead",
    "\n\ttab\r\n",
    "\u3000\uff21\uff22 \u6f22\u5b57\u304b\u306a",
    "</s> <s>",
    "\U0001f600",
    "\u2581",
]
