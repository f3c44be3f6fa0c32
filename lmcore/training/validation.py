"""Validation during a training."""

from collections.abc import Callable
from dataclasses import astuple
from itertools import accumulate
from pathlib import Path

import torch

from lmcore.dataset.stream import TokenStream, source_names
from lmcore.model.evaluate import Document, Scorer
from lmcore.runs.run import Run
from lmcore.runs.scores import Score
from lmcore.training.distributed import Ranks


class ValidationStoppedError(Exception):
    """A stop was asked for during a validation."""


class Validation:
    """Scores a model during training, on the validation documents with the lowest hashes.

    Ranks divide the documents. With fsdp each rank scores all of them, because all take part in each forward pass.
    """

    def __init__(self, run: Run, scorer: Scorer, ranks: Ranks) -> None:
        self._scorer, self._ranks = scorer, ranks
        self._is_shared = run.config.train.parallel == "ddp"
        documents = _first_documents(run.dataset_folder, run.config.train.validation_tokens)
        mine = slice(ranks.rank, None, ranks.world) if self._is_shared else slice(None)
        self._documents = {name: each[mine] for name, each in documents.items()}

    @property
    def tokens(self) -> int:
        """Tokens in the documents that this rank scores."""
        return sum(len(ids) for mine in self._documents.values() for ids, *_ in mine)

    def __call__(self, should_stop: Callable[[], bool]) -> dict[str, Score]:
        """The score of each source that has documents, equal on all ranks.

        Raises ValidationStoppedError when ``should_stop`` returns True after a batch. Several ranks go on together and
        do not ask.
        """

        def check(tokens: int) -> None:
            if self._ranks.world == 1 and should_stop():
                raise ValidationStoppedError

        scores = {name: self._scorer.each(mine, check).total for name, mine in self._documents.items()}
        if self._is_shared and self._ranks.world > 1:
            sums = {
                name: self._ranks.sum(torch.tensor(astuple(score), dtype=torch.float64))
                for name, score in scores.items()
            }
            scores = {name: Score.from_figures(each.tolist()) for name, each in sums.items()}
        return scores


def _first_documents(dataset: Path, tokens: int) -> dict[str, list[Document]]:
    """Validation documents by source: those with the lowest hashes, until they hold ``tokens`` tokens."""
    everything = [
        (document, source)
        for source in source_names(dataset, "validation")
        for document in TokenStream(dataset, "validation", source).documents()
    ]
    everything.sort(key=lambda row: row[0][2])
    before = accumulate((len(ids) for (ids, *_), _ in everything), initial=0)
    chosen: dict[str, list[Document]] = {}
    for (document, source), count in zip(everything, before, strict=False):
        if count < tokens:
            chosen.setdefault(source, []).append(document)
    return chosen
