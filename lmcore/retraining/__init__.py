"""Training a model again when its text has grown.

Promises: a challenger becomes champion only by rules that are written down; each decision is kept.
Imports: registry, model and every wing above; never training or upkeep.
Doors: ``new_documents.split_by_age``, ``challenge.challenger_settings``, ``challenge.compare``,
``challenge.record_decision``.
"""
