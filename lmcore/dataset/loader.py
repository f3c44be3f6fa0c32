"""Training blocks to batches: at any position, for any rank, in any worker. Shapes: B blocks of T tokens.

Global batch g holds the blocks at positions g * batch_size on. It depends on the position alone, so it is the same for
any number of ranks and workers, and the first batch after a resume costs no more than any other.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from lmcore.dataset.mixture import Mixture
from lmcore.dataset.stream import IGNORED_LABEL, Ids

Batch = dict[str, torch.Tensor]
Item = TypeVar("Item")

_PREFETCHED = 2
_ORDER_WINDOW = 16_384
"""Positions that are shuffled at once, to spread the cost of numpy calls."""


def loader(
    blocks: Mixture,
    batch_size: int,
    *,
    first_block: int,
    last_block: int,
    seed: int,
    shuffle: bool = True,
    document_ids: bool = False,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """Batches of the blocks at positions ``first_block`` to ``last_block`` (exclusive) of training.

    Yields ``input_ids`` and ``labels``, int64 (B, T), and with ``document_ids`` the result of ``document_boundaries``.
    The last batch may be short. Of ``world`` ranks, rank r gets rows r, r + world ... of each batch of ``batch_size``
    blocks; missing rows are filled with ignored labels. Worker w of k of a DataLoader yields batches w, w + k ...
    """
    worker = get_worker_info()
    mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
    window = max(1, _ORDER_WINDOW // batch_size) * batch_size
    for start in range(first_block, last_block, window):
        sources, numbers = blocks.order(np.arange(start, min(start + window, last_block)), seed, shuffle)
        for offset in range(0, len(numbers), batch_size):
            if (start - first_block + offset) // batch_size % workers == mine:
                rows = slice(offset + rank, offset + batch_size, world)
                inputs, labels = blocks.read(sources[rows], numbers[rows])
                if missing := -(-len(numbers[offset : offset + batch_size]) // world) - len(inputs):
                    inputs = np.pad(inputs, ((0, missing), (0, 0)), constant_values=blocks.eos_id)
                    labels = np.pad(labels, ((0, missing), (0, 0)), constant_values=IGNORED_LABEL)
                batch = {"input_ids": inputs, "labels": labels}
                if document_ids:
                    batch |= document_boundaries(inputs, labels, blocks.eos_id)
                yield {name: torch.from_numpy(array) for name, array in batch.items()}


class Batches(IterableDataset[Batch]):
    """``loader``, with the same arguments, for torch's DataLoader: the same batches in the same order.

    DataLoader(Batches(...), batch_size=None, num_workers=2, prefetch_factor=4)
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._load = partial(loader, *arguments, **options)

    def __iter__(self) -> Iterator[Batch]:
        return self._load()


def document_boundaries(inputs: Ids, labels: Ids, eos_id: int) -> dict[str, Ids]:
    """``position_ids`` from 0 in each document, and ``document_ids`` from 0 in each block; (B, T).

    An input EOS belongs to the document after it, as in evaluation. A packed remainder begins where the input differs
    from the label before it. The padding of a block is a document. With ``position_ids`` and no attention mask,
    transformers lets no token attend to another document.
    """
    begins = np.ones(inputs.shape, np.bool_)
    begins[:, 1:] = (inputs[:, 1:] == eos_id) | (inputs[:, 1:] != labels[:, :-1])
    begins[:, 1:] &= labels[:, :-1] != IGNORED_LABEL
    columns = np.arange(inputs.shape[1])
    firsts = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    return {"position_ids": columns - firsts, "document_ids": begins.cumsum(axis=1) - 1}


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on ``device``. The copy to cuda is from pinned memory and asynchronous."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # a new thread uses the first GPU by default
            batch = {name: tensor.pin_memory() for name, tensor in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def prefetch(items: Iterable[Item]) -> Iterator[Item]:
    """The same items in the same order, made in another thread, at most two ahead.

    Errors of ``items`` are raised here. The thread ends with this generator.
    """
    end, source = object(), iter(items)
    with ThreadPoolExecutor(1, "prefetch") as thread:
        waiting = deque(thread.submit(next, source, end) for _ in range(_PREFETCHED))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(thread.submit(next, source, end))
            yield item  # type: ignore[misc]
