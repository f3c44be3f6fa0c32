"""Files to documents.

Promises: every byte of every file is in a document or in the ledger; the same bytes give the same documents.
Imports: settings, store.
Doors: ``listing.open_corpus`` scans a corpus, ``readers.read_documents`` yields the documents of a file. ``detection``
recognizes a file format.
"""
