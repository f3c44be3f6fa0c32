"""SentencePiece models: train one without loss, and save it so that transformers gives the same ids.

Training keeps every character: no normalization, and byte pieces for rare characters. SentencePiece treats white space
specially: it writes a space as U+2581, allows it only at the start of a piece, and never sees a line break. So the
trainer gets words with their counts and with marks for white space, and the trained model is rewritten with real white
space. Then a line break and an indent become one piece, and a literal U+2581 survives.

BPE, the default, is exact in plain transformers in both directions. Of a unigram model the ids are equal too, but
transformers decodes them with loss (newlines, leading spaces, byte pieces).
"""

import io
import json
import re
from collections import Counter
from copy import deepcopy
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from lmcore.errors import StoreError, TokenizerError
from lmcore.settings.config import SPECIAL_PIECES, TokenizerConfig
from lmcore.signals import interruptible
from lmcore.store.json_files import read_object
from lmcore.tokenizer.transformers_view import check_in_transformers, save_fast

MODEL_FILE = "tokenizer.model"
SPIECE_FILE = "spiece.model"
"""The name of the model in an export that llama.cpp would misread (export_files.py)."""


_SENTENCEPIECE_CLASSES = ("SentencePieceBackend", "BertGenerationTokenizer")
"""Classes of transformers that give the ids of a SentencePiece model unchanged."""
_SPACE = "\u2581"
_PART_CHARACTERS = 2048
_MARKS = {" ": "\ufdd0", "\t": "\ufdd1"}
"""Stand-ins for white space that the trainer treats specially. Unicode reserves these code points for such use."""

# SentencePiece drops sentences with a NUL, with U+2581, or with its mark for unknown pieces.
_UNTRAINABLE = re.compile("[\0\u2581\u2585\ufdd0\ufdd1]")

_WORD = re.compile(r"\s{0,64}(?:[^\W\d_]{1,64}|\d{1,64}|(?:_|[^\w\s]){1,64})|\s{1,64}")
"""Pieces do not cross words: letters, digits or other characters with the white space and line breaks before them. The
length is bounded, so that text without white space costs no more than other text."""


def train_model(config: TokenizerConfig, texts: list[str]) -> tuple[Any, int]:
    """The trained model (a protobuf ModelProto), and the bytes that the trainer saw. Raises TokenizerError."""
    words = Counter(word for text in texts for part in _UNTRAINABLE.split(text) for word in _WORD.findall(part))
    marks = str.maketrans(_MARKS)
    seen_bytes = sum(len(word.encode()) * count for word, count in words.items())
    model = io.BytesIO()
    try:
        interruptible(
            lambda: sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{word.translate(marks)}\t{count}" for word, count in sorted(words.items())),
                input_format="tsv",
                model_writer=model,
                model_type=config.model_type,
                vocab_size=config.vocab_size,
                hard_vocab_limit=False,
                character_coverage=config.character_coverage,
                required_chars=_MARKS[" "],  # llama.cpp needs a piece that is a space
                num_threads=config.threads,
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                control_symbols=[*SPECIAL_PIECES[4:], *config.special_tokens],
                normalization_rule_name="identity",
                byte_fallback=True,
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                split_by_whitespace=False,
                split_by_unicode_script=False,
                minloglevel=2,
            )
        )
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"SentencePiece could not train {config.vocab_size} pieces on {seen_bytes:,} bytes: {error}. "
            "More text, or another tokenizer.vocab_size, helps most often."
        ) from error
    trained = model_pb2.ModelProto.FromString(model.getvalue())
    return _respelt(trained, {mark: character for character, mark in _MARKS.items()}), seen_bytes


def with_marked_spaces(proto: Any) -> Any:
    """The same model with U+2581 for spaces in its pieces, as usual for SentencePiece."""
    return _respelt(proto, {" ": _SPACE})


def _respelt(proto: Any, spellings: dict[str, str]) -> Any:
    """The same model with other white space in its pieces."""
    respelt, table = deepcopy(proto), str.maketrans(spellings)
    for piece in respelt.pieces:
        if piece.type == piece.NORMAL:
            piece.piece = piece.piece.translate(table)
    respelt.normalizer_spec.escape_whitespaces = _SPACE in spellings.values()
    return respelt


def normalized_by(proto: Any, form: str) -> Any:
    """The same model with NFKC normalization built in. SentencePiece has no rules for other forms."""
    if form != "NFKC" or proto.normalizer_spec.precompiled_charsmap:
        return proto
    rules = sentencepiece.SentencePieceNormalizer(rule_name="nfkc").serialized_model_proto()
    found, normalizing = model_pb2.ModelProto.FromString(rules).normalizer_spec, deepcopy(proto)
    normalizing.normalizer_spec.name = found.name
    normalizing.normalizer_spec.precompiled_charsmap = found.precompiled_charsmap
    return normalizing


def read_model(path: Path) -> Any:
    """The SentencePiece model in a file. Raises TokenizerError if it is none."""
    try:
        proto = model_pb2.ModelProto.FromString(path.read_bytes())
    except Exception as error:
        raise TokenizerError(f"{path} is not a SentencePiece model: {error}") from error
    if not proto.pieces:
        raise TokenizerError(f"{path} is not a SentencePiece model: it has no pieces")
    eos = proto.trainer_spec.eos_id
    if not 0 <= eos < len(proto.pieces) or proto.pieces[eos].type != proto.pieces[eos].CONTROL:
        raise TokenizerError(
            f"{path} has no end-of-text id that text cannot become (eos_id {eos}). Train it with an eos_id and without "
            "its piece among user_defined_symbols, or use tokenizer.source train"
        )
    return proto


def save_model(proto: Any, folder: Path, texts: list[str]) -> dict[str, Any]:
    """Save a model in a folder that transformers opens; the facts that TokenizerInfo keeps of it."""
    trainer = proto.trainer_spec
    ids = {"unk": trainer.unk_id, "bos": trainer.bos_id, "eos": trainer.eos_id, "pad": trainer.pad_id}
    controls = [piece.piece for piece in proto.pieces if piece.type == piece.CONTROL]
    specials = {f"{name}_token": proto.pieces[i].piece for name, i in ids.items() if i >= 0}
    specials |= {f"{name}_token": f"<{name}>" for name in ("cls", "sep") if f"<{name}>" in controls}
    extra = [piece for piece in controls if piece not in specials.values()]
    (folder / MODEL_FILE).write_bytes(proto.SerializeToString())
    if has_exact_json(proto):
        save_fast(_tokenizers_bpe(proto), folder, specials, extra)
    else:
        config = {
            "tokenizer_class": "SentencePieceBackend",
            "split_special_tokens": True,
            "clean_up_tokenization_spaces": False,
            "extra_special_tokens": extra,
            **specials,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    ours = sentencepiece.SentencePieceProcessor(model_file=str(folder / MODEL_FILE))
    check_in_transformers(folder, ours.encode, (text[:20_000] for text in texts))
    return {
        "model_type": "bpe" if trainer.model_type == trainer.BPE else "unigram",
        "vocab_size": len(proto.pieces),
        "eos_id": ids["eos"],
        "pad_id": ids["pad"] if ids["pad"] >= 0 else ids["eos"],
    }


def has_exact_json(proto: Any) -> bool:
    """True if a tokenizer.json can give exactly the ids of this model."""
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

    SentencePiece merges the neighbours whose joint piece has the best score. So each split of a piece into two pieces
    is a merge, in the order of the scores.
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


def character_pairs(proto: Any) -> frozenset[str]:
    """All pairs of neighbouring characters in pieces, for ``split_exactly``. Empty if a split may not be exact.

    No merge crosses a pair of characters that is in no piece, so the text before and after it is encoded independently.
    This does not hold for a unigram model: its sums of scores are rounded, and ties fall differently.
    """
    if not has_exact_json(proto) or proto.normalizer_spec.escape_whitespaces:
        return frozenset()
    pieces = [piece.piece for piece in proto.pieces if piece.type == piece.NORMAL]
    return frozenset(piece[at : at + 2] for piece in pieces for at in range(len(piece) - 1))


def split_exactly(text: bytes, pairs: frozenset[str]) -> list[bytes]:
    """Parts of a text (UTF-8) of about _PART_CHARACTERS characters. Their ids joined are those of the whole text.

    SentencePiece takes four times as long for one text of 6 MB as for its parts.
    """
    if not pairs or len(text) <= _PART_CHARACTERS:
        return [text]
    characters = text.decode()
    ends = [0]
    while len(characters) - ends[-1] > _PART_CHARACTERS:
        end = ends[-1] + _PART_CHARACTERS
        while end < len(characters) and characters[end - 1 : end + 1] in pairs:
            end += 1
        ends.append(end)
    return [characters[start:end].encode() for start, end in pairwise([*ends, len(characters)])]


def sentencepiece_of(folder: Path) -> Any:
    """The SentencePiece model that gives the ids of the transformers tokenizer in a folder; None if there is none."""
    config, view = _read_json(folder / "tokenizer_config.json"), _read_json(folder / "tokenizer.json")
    files = [folder / name for name in (SPIECE_FILE, MODEL_FILE) if (folder / name).exists()]
    if not files or (config and not view and config.get("tokenizer_class") not in _SENTENCEPIECE_CLASSES):
        return None
    proto = read_model(files[0])
    if not view:
        return proto
    if not has_exact_json(proto):
        return None
    if view.get("normalizer") is None:
        proto = _respelt(proto, {_SPACE: " "})
    said = json.loads(_tokenizers_bpe(proto).to_str())
    return proto if all(view.get(name) == said[name] for name in ("model", "normalizer")) else None


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no file."""
    try:
        return read_object(path) if path.exists() else {}
    except StoreError as error:
        raise TokenizerError(f"tokenizer.source: {error}") from error
