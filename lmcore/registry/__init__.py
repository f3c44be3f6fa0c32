"""Models by name: numbered versions, the champion, receipts, and the hub.

Promises: a version never changes; its receipt says what it was made from, down to the bytes of the corpus.
Imports: runs and every wing above; never model. No torch.
Doors: ``versions.find``, ``versions.champion``, ``registry.add_version``, ``registry.promote``.
"""
