"""A text range: consecutive documents of a file, not parsed yet."""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from blake3 import blake3

from lmcore.settings.config import CorpusConfig
from lmcore.store.files import DIGEST_BYTES

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
    ends: Ends | None = None
    """Where each row of a table ends in ``content``; None for text."""
    is_cut_off: bool = False
    """The last document is incomplete."""

    def digest(self) -> bytes:
        """The hash of the content, whatever its place."""
        # Texts with lone CRs got this mark when CR began to end lines; other texts kept their names.
        lines = " CR" if self.ends is None and has_lone_cr(self.content) else ""
        digest = blake3(f"{self.kind} {self.start == 0} {self.is_cut_off}{lines}".encode())
        digest.update(self.content)
        if self.ends is not None:
            digest.update(self.ends.tobytes())
        return digest.digest(DIGEST_BYTES)


def has_lone_cr(content: bytes) -> bool:
    """Whether a line ends in CR, or in CR CR LF."""
    return b"\r" in content and _LONE_CR.search(content) is not None


def unit_of(file_kind: str, config: CorpusConfig) -> str:
    """What one document of a file of this kind is: row, line, paragraph or file."""
    if file_kind in ("parquet", "arrow"):
        return "row"
    if file_kind == "jsonl":
        return "line"
    if config.document == "auto":
        return {"txt": "line", "paragraphs": "paragraph"}.get(file_kind, "file")
    return config.document
