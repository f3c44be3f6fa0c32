"""The care of a store: find what saw a document, forget it, remove what is no longer needed, replay a training.

Promises: nothing that a version, a newer run or a running process needs is removed; a dry run shows what would be.
Imports: registry, model and every wing above; never training or retraining.
Doors: ``seen_by.seen_by``, ``forget.forget``, ``garbage_collection.collect``, ``replay.replay``.
"""
