"""The care of a store: verify a version, replay its training, find what saw a document, forget it, collect garbage.

Promises: nothing that a version, a newer run or a running process needs is removed; a dry run shows what would be.
Imports: registry, model and every wing above; never training or retraining.
Doors: ``verify.check_receipt``, ``replay.replay``, ``seen_by.seen_by``, ``forget.forget``,
``garbage_collection.collect``.
"""
