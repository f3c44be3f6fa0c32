"""How well a model predicts text, independent of packing, batch size and tokenizer.

Each document is scored separately: EOS, its ids, EOS, in windows of at most block_size inputs. Each id except the first
EOS is predicted once. Bits per byte divide by the UTF-8 bytes of the original text, so models with different tokenizers
are comparable.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass, fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from lmcore.dataset.manifest import age_of, base_source
from lmcore.dataset.stream import IGNORED_LABEL, TokenStream, source_names
from lmcore.model.device import autocast, choose_device, choose_precision
from lmcore.model.distributed import Ranks
from lmcore.model.loss import token_cross_entropy, token_nats
from lmcore.model.model import has_plain_head
from lmcore.model.weights import trained_model
from lmcore.progress import Update, unwatched
from lmcore.runs.run import Run, weights_hash
from lmcore.runs.scores import DocumentScores, Evaluation, Score
from lmcore.settings.training import Precision

_SORTED_BATCHES = 64
"""Number of batches whose windows are sorted by length together, to reduce padding."""

_TOKENS_AT_ONCE = 4096
"""Most tokens in a batch. Without chunks, the logits of all of them are in memory as fp32."""

_ROWS_AT_ONCE, _CHUNK_TOKENS = 128, 2048
"""Most windows in a batch, and tokens in a chunk of logits, for any model."""

Window = tuple[npt.NDArray[Any], npt.NDArray[Any], int]
"""Inputs, labels, and the number of the document."""

Document = tuple[npt.NDArray[Any], int, int]
"""Ids with EOS at the end, UTF-8 bytes of the text, hash."""

Numbers = npt.NDArray[np.int64]


def evaluate(run: Run, checkpoint: Path, progress: Update = unwatched) -> Evaluation:
    """The score of a checkpoint's weights on all validation documents; that of each document is kept for the gate.

    An existing evaluation of the same weights is returned. One by an older version of this program, which did not keep
    the scores of documents, stays unchanged, and the scores are added.
    """
    found, weights = Evaluation.load(run.folder), weights_hash(checkpoint)
    known = found if found is not None and found.weights == weights else None
    if known is not None and DocumentScores.find(run.folder, weights) is not None:
        return known
    scored = _score_validation(run, checkpoint, progress)
    _document_scores(run, weights, scored).save_in(run.folder)
    return known or _evaluation(run, weights, scored)


def _score_validation(run: Run, checkpoint: Path, progress: Update) -> dict[str, "Scored"]:
    """Figures of all validation documents, by source."""
    device = choose_device(run.config.train.device)
    model = trained_model(run, checkpoint).to(device)
    chunk_tokens = run.config.train.loss_chunk_tokens if has_plain_head(model) else 0
    split, done = "validation", 0
    streams = {name: TokenStream(run.dataset_folder, split, name) for name in source_names(run.dataset_folder, split)}

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        progress(done, sum(map(len, streams.values())))

    scorer = replace(Scorer.from_run(run, model), chunk_tokens=chunk_tokens, on_scored=advance)
    return {name: scorer.each(stream.documents()) for name, stream in streams.items()}


def _evaluation(run: Run, weights: str, scored: dict[str, "Scored"]) -> Evaluation:
    scores = {name: each.total for name, each in scored.items()}
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


def _document_scores(run: Run, weights: str, scored: dict[str, "Scored"]) -> DocumentScores:
    counts = [len(each.nats) for each in scored.values()]
    columns = {
        field.name: np.concatenate([getattr(each, field.name) for each in scored.values()]) for field in fields(Scored)
    }
    return DocumentScores(
        weights=weights,
        tokenizer_id=run.tokenizer_info.id,
        block_size=run.config.dataset.block_size,
        sources=np.repeat([base_source(name) for name in scored], counts),
        groups=np.repeat([age_of(name) for name in scored], counts),
        **columns,
    )


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


@dataclass(frozen=True)
class Scorer:
    """Scores documents with a model, with its weights at the time of the call."""

    model: torch.nn.Module
    device: torch.device
    precision: Precision
    block_size: int
    batch_size: int
    eos_id: int
    chunk_tokens: int = 0
    """Tokens whose logits are in memory at once, for a model with a plain head. 0: those of the batch."""
    on_scored: Callable[[int], None] = lambda tokens: None
    """Called after each batch with the number of its tokens."""

    @classmethod
    def from_run(cls, run: Run, model: torch.nn.Module) -> Self:
        """A scorer with the settings of a run, for validation and evaluation."""
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

    @classmethod
    def from_model(cls, model: PreTrainedModel, block_size: int, eos_id: int, precision: Precision) -> Self:
        """A scorer for any model. The logits are computed in chunks if the model has a plain head."""
        return cls(
            model=model,
            device=model.device,
            precision=precision,
            block_size=block_size,
            batch_size=_ROWS_AT_ONCE,
            eos_id=eos_id,
            chunk_tokens=_CHUNK_TOKENS if has_plain_head(model) else 0,
        )

    def __call__(self, documents: Iterable[Document]) -> Score:
        """The score of one or more documents."""
        return self.each(documents).total

    @torch.no_grad()
    def each(self, documents: Iterable[Document]) -> Scored:
        """The figures of each document. Windows of several documents share a batch."""
        about: list[tuple[int, int, int]] = []

        def windows() -> Iterator[Window]:
            for ids, text_bytes, hash_ in documents:
                about.append((len(ids), text_bytes, hash_))
                yield from self._windows(ids, len(about) - 1)

        was_training = self.model.training
        self.model.eval()
        numbers, nats = [np.empty(0, np.int64)], [np.empty(0)]
        for inputs, labels, rows in self._batches(windows()):
            nats.append(self._nats(inputs.to(self.device), labels.to(self.device)))
            numbers.append(rows)
            self.on_scored(int((labels != IGNORED_LABEL).sum()))
        self.model.train(was_training)
        tokens, text_bytes, hashes = (list(column) for column in zip(*about, strict=True)) if about else ([], [], [])
        return Scored(
            hashes=np.array(hashes, np.uint64),
            nats=np.bincount(np.concatenate(numbers), np.concatenate(nats), len(about)).astype(np.float64),
            tokens=np.array(tokens, np.int64),
            text_bytes=np.array(text_bytes, np.int64),
        )

    def _nats(self, inputs_BT: torch.Tensor, labels_BT: torch.Tensor) -> npt.NDArray[np.float64]:
        """The nats of each row."""
        with autocast(self.precision, self.device):
            losses_N = self._losses(inputs_BT, labels_BT.flatten())
        sums: npt.NDArray[np.float64] = losses_N.cpu().double().view(inputs_BT.shape).sum(dim=1).numpy()
        return sums

    def _losses(self, inputs_BT: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
        model: Any = self.model
        if not self.chunk_tokens:
            logits_BTV = model(input_ids=inputs_BT, use_cache=False).logits
            return token_cross_entropy(logits_BTV.flatten(0, 1), labels_N)
        hidden_BTC = model.base_model(input_ids=inputs_BT, use_cache=False).last_hidden_state
        head = model.get_output_embeddings()
        return token_nats(hidden_BTC.flatten(0, 1), head.weight, head.bias, labels_N, self.chunk_tokens)

    def _windows(self, ids: npt.NDArray[Any], number: int) -> Iterator[Window]:
        sequence = np.concatenate([[self.eos_id], ids.astype(np.int64)])
        for start in range(0, len(ids), self.block_size):
            piece = sequence[start : start + self.block_size + 1]
            yield piece[:-1], piece[1:], number

    def _batches(self, windows: Iterator[Window]) -> Iterator[tuple[torch.Tensor, torch.Tensor, Numbers]]:
        while waiting := list(islice(windows, _SORTED_BATCHES * self.batch_size)):
            waiting.sort(key=lambda window: -len(window[0]))
            while waiting:
                rows = max(1, min(self.batch_size, _TOKENS_AT_ONCE // len(waiting[0][0])))
                yield self._padded(waiting[:rows])
                del waiting[:rows]

    def _padded(self, windows: list[Window]) -> tuple[torch.Tensor, torch.Tensor, Numbers]:
        """Inputs and labels (B, T) of windows, longest first, and the numbers of their documents."""
        shape = (len(windows), len(windows[0][0]))
        inputs = np.full(shape, self.eos_id, dtype=np.int64)
        labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
        for row, (window_inputs, window_labels, _) in enumerate(windows):
            inputs[row, : len(window_inputs)] = window_inputs
            labels[row, : len(window_labels)] = window_labels
        numbers = np.array([number for *_, number in windows], np.int64)
        return torch.from_numpy(inputs), torch.from_numpy(labels), numbers


class Validation:
    """Scores a model during training, on the validation documents with the lowest hashes.

    Ranks divide the documents. With fsdp each rank scores all of them, because all take part in each forward pass.
    """

    def __init__(self, scorer: Scorer, documents: dict[str, list[Any]], ranks: Ranks, is_shared: bool) -> None:
        self._scorer, self._ranks, self._is_shared = scorer, ranks, is_shared
        step = ranks.world if is_shared else 1
        self._documents = {name: mine[ranks.rank % step :: step] for name, mine in documents.items()}

    @classmethod
    def from_run(cls, run: Run, model: torch.nn.Module, ranks: Ranks) -> Self:
        """A validation on documents of all sources, up to train.validation_tokens."""
        train = run.config.train
        documents = _first_documents(run.dataset_folder, train.validation_tokens)
        return cls(Scorer.from_run(run, model), documents, ranks, is_shared=train.parallel == "ddp")

    @property
    def tokens(self) -> int:
        """Tokens in the documents that this rank scores."""
        return sum(len(ids) for mine in self._documents.values() for ids, *_ in mine)

    def __call__(self) -> dict[str, Score]:
        """The score of each source that has documents, equal on all ranks."""
        scores = {name: self._scorer(mine) for name, mine in self._documents.items()}
        if not self._is_shared:
            return scores
        return {
            name: Score.from_figures(self._ranks.sum(torch.tensor(astuple(score)).double()).tolist())
            for name, score in scores.items()
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
