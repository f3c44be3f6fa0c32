"""The ledger: whether each byte of a corpus is in a document, separates documents or is skipped.

Bytes are unpacked bytes unless they are called stored. Of a table they are the bytes of the text column, and offsets
count rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from lmcore.errors import CorpusError

_SHOWN = 8
_IN_MANIFEST = (
    *("documents", "source_bytes", "document_bytes", "separator_bytes", "skipped_bytes", "unaccounted_bytes"),
    *("normalized_documents", "stored_bytes", "undecodable_stored_bytes"),
)


@dataclass(frozen=True, slots=True)
class Skip:
    """A part of a file that is not in any document, with its place and the reason."""

    path: str
    offset: int
    length: int
    reason: str
    stored: int = 0
    """Stored bytes that gave no text."""
    detail: str = ""
    """What was found instead: an encoding, the keys of an object."""
    content: bytes = field(default=b"", compare=False, repr=False)
    """The bytes, if they were in memory."""

    def to_json(self) -> dict[str, Any]:
        """The skip as written to a manifest."""
        place = {"path": self.path, "offset": self.offset, "length": self.length, "reason": self.reason}
        stored, detail = {"stored_bytes": self.stored}, {"detail": self.detail}
        return place | (stored if self.stored else {}) | (detail if self.detail else {})


def name_list(names: Iterable[Any]) -> str:
    """The first keys or columns, as a detail of a skip."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(f"`{name}`" for name in names[:_SHOWN]) + more


@dataclass
class Ledger:
    """The counts of some files, or of a part of a file."""

    documents: int = 0
    source_bytes: int = 0
    document_bytes: int = 0
    separator_bytes: int = 0
    normalized_documents: int = 0
    """Documents that corpus.normalize changed."""
    stored_bytes: int = 0
    undecodable_stored_bytes: int = 0
    """Stored bytes that gave no text, including those after damage or the end of a cut bomb."""
    units: dict[str, int] = field(default_factory=dict)
    """Documents by unit: line, JSON line, paragraph, file or row."""
    skipped: list[Skip] = field(default_factory=list)

    @property
    def skipped_bytes(self) -> int:
        return sum(skip.length for skip in self.skipped)

    @property
    def unaccounted_bytes(self) -> int:
        """0 unless the program has a bug."""
        return self.source_bytes - self.document_bytes - self.separator_bytes - self.skipped_bytes

    def require_no_skips(self) -> None:
        """Raise CorpusError for the first skip, as corpus.on_bad_input = "fail" demands."""
        for bad in self.skipped[:1]:
            raise CorpusError(
                f"{bad.path} at {bad.offset}: {bad.reason} ({bad.length:,} bytes), and corpus.on_bad_input is fail"
            )

    def add(self, other: "Ledger") -> None:
        """Add the counts and skips of another ledger."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.skipped += other.skipped

    def skip_files(self, skips: list[Skip]) -> None:
        """Add whole files that are not read."""
        self.skipped += skips
        for skip in skips:
            self.stored_bytes += skip.stored
            self.undecodable_stored_bytes += skip.stored

    def by_reason(self) -> dict[str, dict[str, int]]:
        """Pieces and bytes that are skipped for each reason."""
        reasons: dict[str, dict[str, int]] = {}
        for skip in self.skipped:
            row = reasons.setdefault(skip.reason, {"pieces": 0, "bytes": 0})
            row["pieces"] += 1
            row["bytes"] += skip.length
        return dict(sorted(reasons.items()))

    def to_json(self) -> dict[str, Any]:
        """The ledger as written to a manifest."""
        skips = sorted(self.skipped, key=lambda skip: (skip.path, skip.offset))
        return {
            **{name: getattr(self, name) for name in _IN_MANIFEST},
            "documents_by_unit": self.units,
            "skipped": self.by_reason(),
            "skips": [skip.to_json() for skip in skips],
        }


_COUNTS = [item.name for item in fields(Ledger) if item.type in (int, "int")]


def printable(path: str) -> str:
    """A path as one line of a terminal, quoted if it holds line ends or control characters."""
    return path if path.isprintable() else repr(path)


def counted(count: int, noun: str) -> str:
    """1 file, 2 files."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
