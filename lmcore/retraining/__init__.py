"""Training a model again when its text has grown.

Promises: a challenger becomes champion only by rules that are written down; each decision is kept.
Imports: registry, model and every wing above; never training or upkeep.
Doors: ``retraining.RetrainConfig``, ``challenge.compare``, ``gate.decide``.
"""
