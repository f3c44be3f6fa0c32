"""Where every byte of a corpus went.

A byte is in a document, between documents, in text that corpus.filter did not keep, or in a skip with place and reason.
Bytes are those of the decompressed text unless named stored; of Parquet and Arrow files, those of the text column,
and offsets count rows there.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from lmcore.errors import CorpusError

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Skip:
    """A piece of a file that became no document. ``content``: its bytes, where they were still at hand."""

    path: str
    offset: int
    length: int
    reason: str
    stored: int = 0
    """Stored bytes that it cost, where no text of them was seen."""
    detail: str = ""
    """What is there instead: an encoding, the keys of an object."""
    content: bytes = field(default=b"", compare=False, repr=False)


def shown_names(names: Iterable[Any]) -> str:
    """Some keys or columns, as a detail of a skip."""
    names = list(names)
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + (
        f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    )


@dataclass
class Ledger:
    """The account of some files, or of a part of one."""

    documents: int = 0
    source_bytes: int = 0
    document_bytes: int = 0
    separator_bytes: int = 0
    filtered_documents: int = 0
    """Documents that corpus.filter did not keep."""
    filtered_bytes: int = 0
    normalized_documents: int = 0
    """Documents whose text corpus.normalize changed."""
    stored_bytes: int = 0
    undecodable_stored_bytes: int = 0
    """Stored bytes that gave no text, those behind damage or a cut-off bomb included."""
    units: dict[str, int] = field(default_factory=dict)
    """Documents by what they are in their files: line, paragraph or file of a plain text, row of a table."""
    skipped: list[Skip] = field(default_factory=list)

    @property
    def skipped_bytes(self) -> int:
        return sum(skip.length for skip in self.skipped)

    @property
    def unaccounted_bytes(self) -> int:
        """Zero, unless this program has lost text."""
        return self.source_bytes - self.document_bytes - self.separator_bytes - self.filtered_bytes - self.skipped_bytes

    def require_no_skips(self) -> None:
        """For corpus.on_bad_input = "fail". Raises CorpusError that names the first piece that became no document."""
        for bad in self.skipped[:1]:
            raise CorpusError(
                f"{bad.path} at {bad.offset}: {bad.reason} ({bad.length:,} bytes), and corpus.on_bad_input is fail"
            )

    def add(self, other: "Ledger") -> None:
        self.documents += other.documents
        self.source_bytes += other.source_bytes
        self.document_bytes += other.document_bytes
        self.separator_bytes += other.separator_bytes
        self.filtered_documents += other.filtered_documents
        self.filtered_bytes += other.filtered_bytes
        self.normalized_documents += other.normalized_documents
        self.stored_bytes += other.stored_bytes
        self.undecodable_stored_bytes += other.undecodable_stored_bytes
        self.skipped += other.skipped

    def leave_out(self, skips: list[Skip]) -> None:
        """Take up whole files that are not read."""
        self.skipped += skips
        for skip in skips:
            self.stored_bytes += skip.stored
            self.undecodable_stored_bytes += skip.stored

    def by_reason(self) -> dict[str, dict[str, int]]:
        reasons: dict[str, dict[str, int]] = {}
        for skip in self.skipped:
            row = reasons.setdefault(skip.reason, {"pieces": 0, "bytes": 0})
            row["pieces"] += 1
            row["bytes"] += skip.length
        return dict(sorted(reasons.items()))

    def to_json(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "source_bytes": self.source_bytes,
            "document_bytes": self.document_bytes,
            "separator_bytes": self.separator_bytes,
            "filtered_bytes": self.filtered_bytes,
            "skipped_bytes": self.skipped_bytes,
            "unaccounted_bytes": self.unaccounted_bytes,
            "normalized_documents": self.normalized_documents,
            "stored_bytes": self.stored_bytes,
            "undecodable_stored_bytes": self.undecodable_stored_bytes,
            "documents_by_unit": self.units,
            "skipped": self.by_reason(),
            "skips": [
                {"path": s.path, "offset": s.offset, "length": s.length, "reason": s.reason}
                | ({"stored_bytes": s.stored} if s.stored else {})
                | ({"detail": s.detail} if s.detail else {})
                for s in sorted(self.skipped, key=lambda s: (s.path, s.offset))
            ],
        }


def printable(path: str) -> str:
    """A path on one line of a terminal; quoted where its name holds line ends or control characters."""
    return path if path.isprintable() else repr(path)


def counted(count: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
