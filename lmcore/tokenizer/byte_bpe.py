"""Byte-level BPE, trained by the tokenizers library. All 256 bytes are in the vocabulary, so no text is unknown.

Text is cut at GPT-2's word boundaries (Radford et al. 2019), each byte is written as a printable character, and the
most frequent neighbours are merged. Training is deterministic for any number of threads.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmcore.errors import TokenizerError
from lmcore.settings.config import SPECIAL_PIECES, TokenizerConfig
from lmcore.signals import interruptible
from lmcore.tokenizer.transformers_view import ROLES, check_in_transformers, save_fast

_LONGEST_WORD = 256
_LONG_RUN = re.compile(rf"\S{{{_LONGEST_WORD + 1},}}|\s{{{_LONGEST_WORD + 1},}}")
_PRINTABLE = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _PRINTABLE]
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_HIDDEN)}
"""Character -> byte, as GPT-2 writes them: a printable byte as itself, the others from U+0100 on."""


def train_byte_bpe(config: TokenizerConfig, texts: list[str], folder: Path) -> dict[str, Any]:
    """Train on ``texts`` and save for transformers; the fields of the manifest, seen_bytes included.

    Raises TokenizerError if a special token is also a piece of ordinary text.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        min_frequency=2,
        special_tokens=[*SPECIAL_PIECES, *config.special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    interruptible(lambda: fast.train_from_iterator(_bounded(texts), trainer))
    _refuse_clashes(fast, config.special_tokens)
    save_fast(fast, folder, dict(zip(ROLES, SPECIAL_PIECES, strict=False)), config.special_tokens)
    fast.encode_special_tokens = True
    check_in_transformers(folder, lambda text: fast.encode(text).ids, texts[:256])
    return {
        "model_type": "byte_bpe",
        "vocab_size": fast.get_vocab_size(),
        "eos_id": SPECIAL_PIECES.index("</s>"),
        "pad_id": SPECIAL_PIECES.index("<pad>"),
        "seen_bytes": sum(len(text.encode()) for text in texts),
    }


def _bounded(texts: list[str]) -> Iterator[str]:
    """The texts, cut inside words of more than 256 characters: training time grows with the square of a word's length.

    Such words are base64, DNA, lines of one letter. No useful piece is that long.
    """
    for text in texts:
        start = 0
        for run in _LONG_RUN.finditer(text):
            for end in range(run.start() + _LONGEST_WORD, run.end(), _LONGEST_WORD):
                yield text[start:end]
                start = end
        yield text[start:]


def _refuse_clashes(fast: Any, special_tokens: list[str]) -> None:
    """Raise TokenizerError if a merge spells a special token: it would get that token's id, a control id."""
    pieces = {"".join(merge) for merge in json.loads(fast.to_str())["model"]["merges"]} | _BYTES.keys()
    if clashing := [token for token in special_tokens if token in pieces]:
        raise TokenizerError(
            f"tokenizer.special_tokens: {', '.join(clashing)} is also a piece of ordinary text in this corpus. "
            f"Give it marks of its own, such as <|{clashing[0]}|>"
        )


def bytes_of_piece(piece: str) -> bytes:
    """The bytes of a byte-level piece."""
    return bytes(_BYTES[character] for character in piece)
