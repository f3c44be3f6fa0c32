"""The training loop and its parts.

Promises: a training that was killed at any moment continues to the same weights, bit for bit.
Imports: torch, and model and every wing above; never registry, retraining or upkeep.
Doors: ``train.train``, ``checkpoint.load_checkpoint``.
"""
