"""Scores of simple methods on a model's validation text, in the same bits per byte.

zlib (level 9) compresses the validation text. A 5-gram model counts the bytes that follow four others in the training
text and mixes in the counts of shorter contexts (Witten and Bell 1991: a context that is followed by T different bytes
in C places gives the shorter context the weight T / (C + T)). Like the model, it begins each document without context
and predicts its end.
"""

import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.dataset.stream import TokenStream
from lmcore.runs.run import Run
from lmcore.store.outputs import Record
from lmcore.tokenizer.tokenizer import Tokenizer

END = 256
"""The symbol that ends a document; the symbols below it are bytes."""
_SYMBOLS = 257
_ORDER = 5
_TRAIN_BYTES, _VALIDATION_BYTES = 8_000_000, 1_000_000
"""Bytes of each text that are used at most. They take seconds and some hundred MB of memory."""
_WINDOWS = 64
"""Parts of a larger training text that are used, at equal distances."""
_AS_GOOD = 0.01
"""Bits per byte. A smaller difference counts as equal."""

Symbols = npt.NDArray[np.int64]
"""Bytes of documents, END after each."""


class Baselines(Record):
    """Scores of simple methods on the text of one dataset."""

    file_name = "baselines.json"
    dataset_id: str
    train_bytes: int
    """Bytes that the 5-gram model counted."""
    text_bytes: int
    """Bytes that both scored."""
    zlib_bits_per_byte: float
    ngram_bits_per_byte: float


def baselines(run: Run) -> Baselines | None:
    """The scores for a run's dataset, from its folder or computed. None if the tokenizer cannot give the bytes."""
    found, dataset = Baselines.load(run.folder), run.dataset_folder
    if found is not None and found.dataset_id == dataset.name:
        return found
    tokenizer = run.tokenizer()
    train, validation = _train_text(dataset, tokenizer), _validation_text(dataset, tokenizer)
    text_bytes = int((validation != END).sum())
    if not text_bytes or not len(train):
        return None
    return Baselines(
        folder=run.folder,
        dataset_id=dataset.name,
        train_bytes=int((train != END).sum()),
        text_bytes=text_bytes,
        zlib_bits_per_byte=zlib_bits(validation) / text_bytes,
        ngram_bits_per_byte=ngram_bits(train, validation) / text_bytes,
    ).save()


def compared(bits_per_byte: float, found: Baselines) -> str:
    """Sentences that compare a model with the simple methods."""
    zlib, ngram = found.zlib_bits_per_byte, found.ngram_bits_per_byte
    beside = (
        f"On the same text zlib (level 9) needs {zlib:.3f} bits per byte and a 5-gram model of the training text "
        f"{ngram:.3f}."
    )
    (best, name), (worst, other) = sorted([(zlib, "zlib"), (ngram, "the 5-gram model")])
    if not math.isfinite(bits_per_byte):
        verdict = "no better than these"
    elif abs(bits_per_byte - best) <= _AS_GOOD:
        verdict = f"as good as {name}, not better"
    else:
        share = f"{100 * abs(bits_per_byte / best - 1):.0f} %"
        if bits_per_byte < best:
            return f"{beside} The model is better than both: {share} fewer bits than {name}."
        partly = f"better than {other}, but " if bits_per_byte < worst - _AS_GOOD else ""
        verdict = f"{partly}worse than {name}: {share} more bits"
    return f"{beside} The model is {verdict}. Train it longer, or on more text."


def zlib_bits(symbols: Symbols) -> int:
    """Bits of all texts, joined and compressed at level 9."""
    return 8 * len(zlib.compress(symbols[symbols != END].astype(np.uint8).tobytes(), 9))


def ngram_bits(train: Symbols, validation: Symbols, order: int = _ORDER) -> float:
    """Bits that a model of ``order`` symbols, counted on ``train``, needs for ``validation`` and its document ends."""
    seen, asked = _contexts(train, order), _contexts(validation, order)
    chances = np.full(len(validation), 1 / _SYMBOLS)
    for size in range(1, order + 1):
        keys, counts = np.unique(_keys(seen, size), return_counts=True)
        followers = keys // _SYMBOLS
        starts = np.flatnonzero(np.diff(followers, prepend=-1))
        totals, kinds = np.add.reduceat(counts, starts), np.diff(starts, append=len(keys))
        wanted, places = np.unique(_keys(asked, size), return_inverse=True)
        here = _looked_up(keys, counts, wanted)[places]
        total = _looked_up(followers[starts], totals, wanted // _SYMBOLS)[places]
        kind = _looked_up(followers[starts], kinds, wanted // _SYMBOLS)[places]
        chances = np.where(total, (here + kind * chances) / np.maximum(total + kind, 1), chances)
    return float(-np.log2(chances).sum())


def _contexts(symbols: Symbols, order: int) -> list[Symbols]:
    """The symbols themselves, those one before them, and so on; END where a document begins."""
    ends = np.concatenate([[-1], np.flatnonzero(symbols == END)])
    places = np.arange(len(symbols))
    in_document = places - ends[np.searchsorted(ends, places) - 1] - 1
    return [np.where(in_document >= back, np.roll(symbols, back), END) for back in range(order)]


def _keys(contexts: list[Symbols], size: int) -> Symbols:
    """A number for each symbol with the ``size`` - 1 before it; without its symbol, divided by 257, their number."""
    keys = np.zeros(len(contexts[0]), np.int64)
    for column in reversed(contexts[:size]):
        keys = keys * _SYMBOLS + column
    return keys


def _looked_up(keys: Symbols, values: npt.NDArray[Any], wanted: Symbols) -> Symbols:
    """The values of ``wanted``, 0 where a key is not there. Both are sorted."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)


def _symbols(ids: npt.NDArray[Any], tokenizer: Tokenizer) -> Symbols:
    pieces = [piece.decode("latin-1") for piece in tokenizer.pieces()]  # a character for each byte
    pieces[tokenizer.eos_id] = chr(END)
    text = "".join(map(pieces.__getitem__, ids.tolist()))
    return np.frombuffer(text.encode("utf-16-le"), np.uint16).astype(np.int64)


def _train_text(dataset: Path, tokenizer: Tokenizer) -> Symbols:
    """The whole text, or parts of it at equal distances."""
    stream = TokenStream(dataset, "train")
    size = len(stream)
    most = max(_WINDOWS, int(_TRAIN_BYTES * size / max(stream.text_bytes, 1)))
    if size <= most:
        return _symbols(np.concatenate([np.empty(0, np.int64), *stream.segments]), tokenizer)
    rows = np.empty((_WINDOWS, most // _WINDOWS), np.int64)
    stream.fill(rows, np.arange(_WINDOWS) * size // _WINDOWS)
    return _symbols(rows.ravel(), tokenizer)


def _validation_text(dataset: Path, tokenizer: Tokenizer) -> Symbols:
    """Whole documents from the beginning, about as many as are used at most."""
    parts, size = [np.empty(0, np.int64)], 0
    for ids, text_bytes, _ in TokenStream(dataset, "validation").documents():
        if size >= _VALIDATION_BYTES:
            break
        parts.append(ids)
        size += text_bytes + 1
    return _symbols(np.concatenate(parts), tokenizer)
