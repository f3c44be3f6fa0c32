"""Text to ids and back.

Promises: a tokenizer trained here loses no character, and plain transformers gives the same ids.
Imports: settings, store, corpus.
Doors: ``make.make_tokenizer``, ``tokenizer.Tokenizer``.
"""
