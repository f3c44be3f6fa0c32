"""The care of a store: who has seen a document, forgetting it, removing what nobody needs, training again to compare.

Promises: nothing that a version, a newer run or a process at work needs is removed; each action can be shown first.
Imports: registry, model and every wing above; never training or retraining.
Doors: ``seen_by.seen_by``, ``forget.forget``, ``garbage_collection.collect``, ``replay.replay``.
"""
