"""How well a model predicts text, independent of packing, batch size and tokenizer.

Each document is scored separately: EOS, its ids, EOS, in windows of at most block_size inputs. Each id except the first
EOS is predicted once. Bits per byte divide by the UTF-8 bytes of the original text, so models with different tokenizers
are comparable.

Shapes: B windows of a batch, T tokens of the longest of them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lmcore.dataset.manifest import age_of, base_source
from lmcore.dataset.stream import IGNORED_LABEL, TokenStream, source_names
from lmcore.model.device import autocast, choose_precision, held_device
from lmcore.model.loss import NextTokenLoss
from lmcore.model.model import trained_model
from lmcore.progress import Update, unwatched
from lmcore.runs.run import Run, weights_hash
from lmcore.runs.scores import DocumentScores, Evaluation, Score
from lmcore.settings.training import PrecisionChoice

_ROWS_AT_ONCE, _TOKENS_AT_ONCE = 128, 4096
"""Most windows and most tokens in a batch."""

_SORTED_BATCHES = 64
"""Number of batches whose windows are sorted by length together, to reduce padding."""

Window = tuple[npt.NDArray[Any], npt.NDArray[Any], int]
"""Inputs, labels, and the number of the document."""

Document = tuple[npt.NDArray[Any], int, int]
"""Ids with EOS at the end, UTF-8 bytes of the text, hash."""


def evaluate(run: Run, checkpoint: Path, progress: Update = unwatched) -> Evaluation:
    """The score of a checkpoint's weights on all validation documents; that of each document is kept for the gate.

    An existing evaluation of the same weights is returned. One by an older version of this program, which did not keep
    the scores of documents, stays unchanged, and the scores are added.
    """
    found, weights = Evaluation.load(run.folder), weights_hash(checkpoint)
    known = found if found is not None and found.weights == weights else None
    if known is not None and DocumentScores.find(run.folder, weights) is not None:
        return known
    names, scored = _score_validation(run, checkpoint, progress)
    DocumentScores(
        weights=weights,
        tokenizer_id=run.tokenizer_info.id,
        block_size=run.config.dataset.block_size,
        sources=np.array([base_source(name) for name in names], np.str_),
        groups=np.array([age_of(name) for name in names], np.str_),
        **vars(scored),
    ).save_in(run.folder)
    return known or _evaluation(run, weights, names, scored)


def _score_validation(run: Run, checkpoint: Path, progress: Update) -> tuple[list[str], "Scored"]:
    """Sources and figures of all validation documents."""
    dataset, split, names, done = run.dataset_folder, "validation", list[str](), 0
    streams = {name: TokenStream(dataset, split, name) for name in source_names(dataset, split)}

    def documents() -> Iterator[Document]:
        for name, stream in streams.items():
            for document in stream.documents():
                names.append(name)
                yield document

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, sum(map(len, streams.values())))

    with held_device(run.config.train.device) as device:
        loss = NextTokenLoss(trained_model(run, checkpoint).to(device), run.config.train.loss_chunk_tokens)
        return names, Scorer.from_run(run, loss).each(documents(), advance)


def _evaluation(run: Run, weights: str, names: list[str], scored: "Scored") -> Evaluation:
    score, of = scored.total, np.array(names, np.str_)
    sources = {name: scored.rows(of == name).total for name in dict.fromkeys(names)}
    return Evaluation(
        folder=run.folder,
        weights=weights,
        nats_per_token=score.nats_per_token,
        perplexity=score.perplexity,
        bits_per_byte=score.bits_per_byte,
        sources=sources if len(sources) > 1 else {},
        **asdict(score),
    ).save()


@dataclass(frozen=True)
class Scored:
    """Figures of each document, in the order given."""

    hashes: npt.NDArray[np.uint64]
    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]

    @property
    def total(self) -> Score:
        """The score of all documents."""
        sums = (column.sum() for column in (self.tokens, self.text_bytes, self.nats))
        return Score.from_figures([len(self.nats), *sums])

    def rows(self, chosen: npt.NDArray[np.bool_]) -> "Scored":
        """The figures of some documents."""
        return Scored(**{name: column[chosen] for name, column in vars(self).items()})


@dataclass(frozen=True)
class Scorer:
    """Scores documents with a model, with its weights at the time of the call."""

    loss: NextTokenLoss
    block_size: int
    eos_id: int
    precision: PrecisionChoice

    @classmethod
    def from_run(cls, run: Run, loss: NextTokenLoss) -> "Scorer":
        """A scorer with the settings of a run, for validation and evaluation."""
        return cls(loss, run.config.dataset.block_size, run.tokenizer_info.eos_id, run.config.train.precision)

    def __call__(self, documents: Iterable[Document]) -> Score:
        """The score of one or more documents."""
        return self.each(documents).total

    def each(self, documents: Iterable[Document], on_scored: Callable[[int], None] = lambda tokens: None) -> Scored:
        """The figures of each document. ``on_scored`` is called after each batch with the number of its tokens."""
        about: list[tuple[int, int, int]] = []

        def windows() -> Iterator[Window]:
            for ids, text_bytes, hash_ in documents:
                about.append((len(ids), text_bytes, hash_))
                yield from self._windows(ids, len(about) - 1)

        device, numbers, nats = self.loss.model.device, [np.empty(0, np.int64)], [np.empty(0)]
        for inputs, labels, rows in self._batches(windows()):
            nats.append(self._nats(inputs.to(device), labels.to(device)))
            numbers.append(rows)
            on_scored(int((labels != IGNORED_LABEL).sum()))
        tokens, text_bytes, hashes = zip(*about, strict=True) if about else ((), (), ())
        return Scored(
            hashes=np.array(hashes, np.uint64),
            nats=np.bincount(np.concatenate(numbers), np.concatenate(nats), len(about)).astype(np.float64),
            tokens=np.array(tokens, np.int64),
            text_bytes=np.array(text_bytes, np.int64),
        )

    def _nats(self, inputs_BT: torch.Tensor, labels_BT: torch.Tensor) -> npt.NDArray[np.float64]:
        """The nats of each row."""
        device = inputs_BT.device
        with autocast(choose_precision(self.precision, device), device):
            nats_BT = self.loss.token_nats(inputs_BT, labels_BT)
        sums: npt.NDArray[np.float64] = nats_BT.cpu().double().sum(dim=1).numpy()
        return sums

    def _windows(self, ids: npt.NDArray[Any], number: int) -> Iterator[Window]:
        sequence = np.concatenate([[self.eos_id], ids.astype(np.int64)])
        for start in range(0, len(ids), self.block_size):
            piece = sequence[start : start + self.block_size + 1]
            yield piece[:-1], piece[1:], number

    def _batches(self, windows: Iterator[Window]) -> Iterator[tuple[torch.Tensor, torch.Tensor, npt.NDArray[np.int64]]]:
        """Inputs and labels (B, T) of windows of similar length, and the numbers of their documents."""
        while waiting := list(islice(windows, _SORTED_BATCHES * _ROWS_AT_ONCE)):
            waiting.sort(key=lambda window: -len(window[0]))
            while waiting:
                longest = len(waiting[0][0])
                count = max(1, min(_ROWS_AT_ONCE, _TOKENS_AT_ONCE // longest))
                rows, waiting = waiting[:count], waiting[count:]
                inputs = np.full((len(rows), longest), self.eos_id, np.int64)
                labels = np.full((len(rows), longest), IGNORED_LABEL, np.int64)
                for row, (window_inputs, window_labels, _) in enumerate(rows):
                    inputs[row, : len(window_inputs)] = window_inputs
                    labels[row, : len(window_labels)] = window_labels
                numbers = np.array([number for *_, number in rows], np.int64)
                yield torch.from_numpy(inputs), torch.from_numpy(labels), numbers
