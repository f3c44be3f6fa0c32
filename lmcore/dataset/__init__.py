"""Documents to shards, shards to blocks, and blocks to batches in a repeatable order.

Promises: a shard depends on its text and tokenizer alone; position n of a training is the same block on every machine.
Imports: settings, store, corpus, tokenizer. Only ``blocks.py`` and ``loader.py`` import torch.
Doors: ``tokenization.tokenize``, ``mixture.count_blocks``; the names of ``blocks.py`` stand here too.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lmcore.dataset.blocks import BlockDataset, BufferedShuffleDataset, collate_fn

__all__ = ["BlockDataset", "BufferedShuffleDataset", "collate_fn"]


def __getattr__(name: str) -> Any:
    """What ``__all__`` names, imported when it is asked for: it imports torch, and tokenizing needs none."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lmcore.dataset import blocks

    return getattr(blocks, name)
