"""A SentencePiece model: trained without loss, and saved so that transformers reads the same.

Training keeps every character (no normalization, byte pieces for the rest). SentencePiece writes a space as U+2581
and so cannot tell the two apart; the trained model is rewritten to hold real spaces, which makes a literal U+2581
survive as well.

For a BPE model plain transformers is exact in both directions: its tokenizer.json gives sentencepiece's own ids and
decodes them back to the text, byte for byte. For a unigram model the ids are sentencepiece's too, but transformers'
wrapper decodes them with loss (newlines, leading spaces, byte pieces).
"""

import io
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as model_pb2

from lmcore.config import SPECIAL_PIECES, TokenizerConfig
from lmcore.errors import TokenizerError
from lmcore.transformers_view import check_in_transformers, save_fast

MODEL_FILE = "tokenizer.model"
SPIECE_FILE = "spiece.model"
"""Its name in an export where llama.cpp would misread it (portable.py)."""


_SPACE = "\u2581"


_MAX_SENTENCE_BYTES = 4096


# SentencePiece drops a sentence that holds a NUL or the mark it reserves for unknown pieces.
_UNTRAINABLE = re.compile("[\0\u2585]")


def train_model(config: TokenizerConfig, texts: list[str]) -> tuple[Any, int]:
    """The trained model (a protobuf ModelProto) and the bytes of text that the trainer saw.

    Raises TokenizerError when SentencePiece cannot train on these texts.
    """
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
            required_chars=_SPACE,  # a space is a piece, which llama.cpp counts on
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
            allow_whitespace_only_pieces=True,
            max_sentence_length=2 * _MAX_SENTENCE_BYTES,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise TokenizerError(
            f"SentencePiece could not train {config.vocab_size} pieces on {seen.bytes:,} bytes: {error}. "
            "More text, or another tokenizer.vocab_size, helps most often."
        ) from error
    return with_real_spaces(model_pb2.ModelProto.FromString(model.getvalue())), seen.bytes


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


def with_real_spaces(proto: Any) -> Any:
    """The same model, in whose pieces a space is a space."""
    return _respelt(proto, _SPACE, " ")


def with_marked_spaces(proto: Any) -> Any:
    """The same model as other SentencePiece models are: in its pieces a space is U+2581."""
    return _respelt(proto, " ", _SPACE)


def _respelt(proto: Any, old: str, new: str) -> Any:
    respelt = model_pb2.ModelProto()
    respelt.CopyFrom(proto)
    for piece in respelt.pieces:
        if piece.type == piece.NORMAL:
            piece.piece = piece.piece.replace(old, new)
    respelt.normalizer_spec.escape_whitespaces = new == _SPACE
    return respelt


def normalized_by(proto: Any, form: str) -> Any:
    """The same model, which normalizes text to NFKC by itself. For other forms SentencePiece has no rules."""
    if form != "NFKC" or proto.normalizer_spec.precompiled_charsmap:
        return proto
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b"]),
        model_writer=model,
        vocab_size=6,
        hard_vocab_limit=False,
        normalization_rule_name="nfkc",
        minloglevel=2,
    )
    rules = model_pb2.ModelProto.FromString(model.getvalue()).normalizer_spec
    normalizing = model_pb2.ModelProto()
    normalizing.CopyFrom(proto)
    normalizing.normalizer_spec.name = rules.name
    normalizing.normalizer_spec.precompiled_charsmap = rules.precompiled_charsmap
    return normalizing


def read_model(path: Path) -> Any:
    proto = model_pb2.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except Exception as error:
        raise TokenizerError(f"{path} is no SentencePiece model: {error}") from error
    if not proto.pieces:
        raise TokenizerError(f"{path} is no SentencePiece model: it has no pieces")
    eos = proto.trainer_spec.eos_id
    if not 0 <= eos < len(proto.pieces) or proto.pieces[eos].type != proto.pieces[eos].CONTROL:
        raise TokenizerError(
            f"{path} has no end-of-text id that text cannot become (eos_id {eos}). Train it with an eos_id and without "
            "its piece among user_defined_symbols, or use tokenizer.source train"
        )
    return proto


def save_model(proto: Any, folder: Path, texts: list[str]) -> dict[str, Any]:
    trainer = proto.trainer_spec
    ids = {"unk": trainer.unk_id, "bos": trainer.bos_id, "eos": trainer.eos_id, "pad": trainer.pad_id}
    specials = {f"{name}_token": proto.pieces[i].piece for name, i in ids.items() if i >= 0}
    for name, piece in (("cls_token", "<cls>"), ("sep_token", "<sep>")):
        if any(entry.piece == piece and entry.type == entry.CONTROL for entry in proto.pieces):
            specials[name] = piece
    controls = [piece.piece for piece in proto.pieces if piece.type == piece.CONTROL]
    extra = [piece for piece in controls if piece not in specials.values()]
    (folder / MODEL_FILE).write_bytes(proto.SerializeToString())
    if has_exact_json(proto):
        save_fast(tokenizers_bpe(proto), folder, specials, extra)
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
    return {
        "model_type": "bpe" if trainer.model_type == trainer.BPE else "unigram",
        "vocab_size": len(proto.pieces),
        "eos_id": ids["eos"],
        "pad_id": ids["pad"] if ids["pad"] >= 0 else ids["eos"],
        "transformers_exact": check_in_transformers(folder, ours.encode, (text[:20_000] for text in texts)),
    }


def has_exact_json(proto: Any) -> bool:
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


def tokenizers_bpe(proto: Any) -> Any:
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


def neighbours(proto: Any) -> frozenset[str]:
    """Every two characters that stand side by side in a piece, for ``cut``. Empty where a cut might not be exact.

    BPE joins neighbours by their scores alone, so what happens left and right of a place that no piece spans is
    independent. (Not so in a unigram model: its sums of scores are rounded, and ties fall otherwise.)
    """
    if not has_exact_json(proto) or proto.normalizer_spec.escape_whitespaces:
        return frozenset()
    pieces = [piece.piece for piece in proto.pieces if piece.type == piece.NORMAL]
    return frozenset(piece[at : at + 2] for piece in pieces for at in range(len(piece) - 1))


def cut(text: bytes, joined: frozenset[str], size: int = 2048) -> list[bytes]:
    """``text`` (UTF-8) in parts of about ``size`` characters whose ids are together those of the whole.

    SentencePiece takes four times as long for one text of 6 MB as for its parts, and one core; parts of this size
    take 0.9 of the time of whole articles.
    """
    if not joined or len(text) <= size:
        return [text]
    characters = text.decode()
    ends = [0]
    while len(characters) - ends[-1] > size:
        end = ends[-1] + size
        while end < len(characters) and characters[end - 1 : end + 1] in joined:
            end += 1
        ends.append(end)
    return [characters[start:end].encode() for start, end in pairwise([*ends, len(characters)])]
