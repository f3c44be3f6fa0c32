"""How well a model predicts text, independent of packing, batch size and tokenizer.

Each document is scored alone: EOS, its ids, EOS, in windows of at most block_size inputs; every id but the first
EOS is predicted exactly once. Bits per byte divide by the UTF-8 bytes of the original text, so models with
different tokenizers compare.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from lmcore.checkpoint import trained_model, weights_hash
from lmcore.device import autocast, choose_device, choose_precision
from lmcore.distributed import Ranks
from lmcore.run import Run
from lmcore.store import Record
from lmcore.stream import IGNORED_LABEL, TokenStream, source_names
from lmcore.training_config import Precision

_SORTED_BATCHES = 64
"""Windows of this many batches are sorted by length together, so that little padding is computed."""

_TOKENS_AT_ONCE = 8192
"""Whose logits are there together, as fp32."""

Window = tuple[npt.NDArray[Any], npt.NDArray[Any]]


@dataclass(frozen=True)
class Score:
    """The outcome of scoring some documents."""

    documents: int = 0
    tokens: int = 0
    """Ids that were predicted: those of the documents and an EOS for each."""
    text_bytes: int = 0
    nats: float = 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def of(cls, figures: torch.Tensor) -> "Score":
        """From its fields as numbers."""
        documents, tokens, text_bytes, nats = figures.tolist()
        return cls(int(documents), int(tokens), int(text_bytes), nats)

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite where that is beyond a float."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits for the whole text, its EOS included, over the bytes of the text."""
        return self.nats / math.log(2) / self.text_bytes


class Evaluation(Record):
    """The whole validation split, scored by the trained model."""

    file_name = "evaluation.json"
    weights: str
    """Hash of the weights that were scored."""
    documents: int
    tokens: int
    text_bytes: int
    nats: float
    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    sources: dict[str, Score]
    """By source, where there are several."""


def evaluate(run: Run, checkpoint: Path) -> Evaluation:
    """Score every validation document with the weights of a checkpoint, or return the score already there."""
    found, weights = Evaluation.load(run.folder), weights_hash(checkpoint)
    if found is not None and found.weights == weights:
        return found
    device = choose_device(run.config.train.device)
    score_documents = Scorer.of_run(run, trained_model(run, checkpoint).to(device))
    scores = {
        name: score_documents(TokenStream(run.dataset_folder, "validation", name).documents())
        for name in source_names(run.dataset_folder, "validation")
    }
    score = sum(scores.values(), Score())
    return Evaluation(
        folder=run.folder,
        weights=weights,
        nats_per_token=score.nats_per_token,
        perplexity=score.perplexity,
        bits_per_byte=score.bits_per_byte,
        sources=scores if len(scores) > 1 else {},
        **asdict(score),
    ).save()


@dataclass(frozen=True)
class Scorer:
    """Scores documents with a model as it is at the time of the call."""

    model: torch.nn.Module
    device: torch.device
    precision: Precision
    block_size: int
    batch_size: int
    eos_id: int

    @classmethod
    def of_run(cls, run: Run, model: torch.nn.Module) -> Self:
        """Scores as the run does, while training and after."""
        config, block_size = run.config.train, run.config.dataset.block_size
        device = next(model.parameters()).device
        most = min(config.micro_batch_size or config.batch_size, config.batch_size)
        return cls(
            model=model,
            device=device,
            precision=choose_precision(config.precision, device),
            block_size=block_size,
            batch_size=max(1, min(most, _TOKENS_AT_ONCE // block_size)),
            eos_id=run.tokenizer_info.eos_id,
        )

    @torch.no_grad()
    def __call__(self, documents: Iterable[tuple[npt.NDArray[Any], int, int]]) -> Score:
        """Score (ids with EOS at the end, text bytes, hash) of documents, at least one."""
        count = text_bytes = tokens = 0
        nats = torch.zeros((), dtype=torch.float64)

        def windows() -> Iterator[Window]:
            nonlocal count, text_bytes
            for ids, document_bytes, _ in documents:
                count += 1
                text_bytes += document_bytes
                yield from self._windows(ids)

        was_training = self.model.training
        self.model.eval()
        for inputs, labels in self._batches(windows()):
            tokens += int((labels != IGNORED_LABEL).sum())
            nats += self._nats(inputs.to(self.device), labels.to(self.device)).cpu()
        self.model.train(was_training)
        return Score(documents=count, tokens=tokens, text_bytes=text_bytes, nats=nats.item())

    def _nats(self, inputs_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        with autocast(self.precision, self.device):
            logits_BTV = self.model(input_ids=inputs_BT, use_cache=False).logits
        losses = cross_entropy(
            logits_BTV.float().flatten(0, 1),
            labels_BT.flatten(),
            ignore_index=IGNORED_LABEL,
            reduction="none",
        )
        return losses.cpu().double().sum()

    def _windows(self, ids: npt.NDArray[Any]) -> Iterator[Window]:
        sequence = np.concatenate([[self.eos_id], ids.astype(np.int64)])
        for start in range(0, len(ids), self.block_size):
            piece = sequence[start : start + self.block_size + 1]
            yield piece[:-1], piece[1:]

    def _batches(self, windows: Iterator[Window]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        waiting: list[Window] = []
        for window in windows:
            waiting.append(window)
            if len(waiting) == _SORTED_BATCHES * self.batch_size:
                yield from self._padded(waiting)
                waiting = []
        yield from self._padded(waiting)

    def _padded(self, windows: list[Window]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        windows.sort(key=lambda window: -len(window[0]))
        for start in range(0, len(windows), self.batch_size):
            batch = windows[start : start + self.batch_size]
            shape = (len(batch), len(batch[0][0]))
            inputs = np.full(shape, self.eos_id, dtype=np.int64)
            labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
            for row, (window_inputs, window_labels) in enumerate(batch):
                inputs[row, : len(window_inputs)] = window_inputs
                labels[row, : len(window_labels)] = window_labels
            yield torch.from_numpy(inputs), torch.from_numpy(labels)


class Validation:
    """Scores a model while it is trained, on the validation documents with the lowest hashes.

    Ranks share them, but with fsdp, where every rank takes part in every forward pass, all score all of them.
    """

    def __init__(self, scorer: Scorer, documents: dict[str, list[Any]], ranks: Ranks, is_shared: bool) -> None:
        self._scorer, self._ranks, self._is_shared = scorer, ranks, is_shared
        step = ranks.world if is_shared else 1
        self._documents = {name: mine[ranks.rank % step :: step] for name, mine in documents.items()}

    @classmethod
    def of_run(cls, run: Run, model: torch.nn.Module, ranks: Ranks) -> Self:
        """By source, together up to train.validation_tokens."""
        train = run.config.train
        documents = _first_documents(run.dataset_folder, train.validation_tokens)
        return cls(Scorer.of_run(run, model), documents, ranks, is_shared=train.parallel == "ddp")

    def __call__(self) -> dict[str, Score]:
        """The score of every source that has documents, the same on all ranks."""
        scores = {name: self._scorer(mine) for name, mine in self._documents.items()}
        if not self._is_shared:
            return scores
        return {
            name: Score.of(self._ranks.sum(torch.tensor(astuple(score)).double())) for name, score in scores.items()
        }


def _first_documents(dataset: Path, tokens: int) -> dict[str, list[Any]]:
    """Validation documents by source: those with the lowest hashes, until they hold ``tokens`` tokens."""
    everything = [
        (document, source)
        for source in source_names(dataset, "validation")
        for document in TokenStream(dataset, "validation", source).documents()
    ]
    everything.sort(key=lambda row: row[0][2])
    chosen: dict[str, list[Any]] = {}
    count = 0
    for document, source in everything:
        if count >= tokens:
            break
        chosen.setdefault(source, []).append(document)
        count += len(document[0])
    return chosen
