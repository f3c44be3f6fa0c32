"""Files to documents.

Promises: every byte of every file is in a document or in the ledger; the same bytes give the same documents.
Imports: settings, store.
Doors: ``scan.scan`` finds and names the files, ``documents.read_documents`` yields their documents.
"""
