"""A text range: consecutive documents of a file, not parsed yet."""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from lmcore.settings.config import CorpusConfig
from lmcore.store.files import DIGEST_BYTES

TABLES = ("parquet", "arrow")
ROW_BYTES = 8
"""Bytes that a row without text counts for."""
_LONE_CR = re.compile(rb"\r(?!\n)")

Ends = npt.NDArray[np.int64]
"""Offsets at which documents or rows end."""


@dataclass(frozen=True, slots=True)
class TextRange:
    """Consecutive documents of a file. ``start`` and ``stop`` count unpacked bytes, or rows of a table."""

    path: str
    kind: str
    start: int
    stop: int
    content: bytes
    ends: Ends
    """Where each document ends in ``content``, with its separators; a row of a table has none."""
    is_cut_off: bool = False
    """The last document is incomplete."""

    @property
    def is_table(self) -> bool:
        return self.kind in TABLES

    def digest(self) -> bytes:
        """The hash of the content, whatever its place."""
        # Texts with lone CRs got this mark when CR began to end lines; other texts kept their names.
        lines = " CR" if not self.is_table and b"\r" in self.content and _LONE_CR.search(self.content) else ""
        digest = blake3(f"{self.kind} {self.start == 0} {self.is_cut_off}{lines}".encode())
        digest.update(self.content)
        if self.is_table:
            digest.update(self.ends.tobytes())
        return digest.digest(DIGEST_BYTES)


def unit_of(file_kind: str, config: CorpusConfig) -> str:
    """What one document of a file of this kind is: row, line, paragraph or file."""
    if file_kind in TABLES:
        return "row"
    if file_kind == "jsonl":
        return "line"
    if config.document == "auto":
        return {"txt": "line", "paragraphs": "paragraph"}.get(file_kind, "file")
    return config.document


def reading_settings(config: CorpusConfig) -> dict[str, Any]:
    """All settings that decide which documents a file holds."""
    names = ("document", "text_field", "max_document_bytes", "max_expansion", "normalize")
    unicode = {"normalized_by": unicodedata.unidata_version} if config.normalize else {}
    # The filter is a setting of earlier versions. It is part of the names of chunks.
    return {**{name: getattr(config, name) for name in names}, "filter": "", **unicode}
