"""The training loop and its parts.

Promises: a training that is killed at any moment continues to bit-equal weights on a CPU.
Imports: torch, and model and every wing above; never registry, retraining or upkeep.
Doors: ``train.train``, ``distributed.run_workers``, ``schedule.Schedule``.
"""
