"""Models and what they compute: attention, loss, evaluation, generation, export.

Promises: bits per byte do not depend on packing, batch size or tokenizer; an export opens in plain transformers.
Imports: torch, transformers, and every wing above; never registry.
Doors: ``model.new_model``, ``evaluate.evaluate``, ``generate.generate``, ``export.export``.
"""
