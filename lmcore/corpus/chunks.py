"""Group the files of a corpus and cut each group into chunks, the units of parallel work and of caching.

Small files share chunks, in the order of their content hashes. Large files have chunks of their own. Content alone
decides which files share a group and where a large file is cut. The ``ChunkIndex`` of a group lists its chunks, so an
unchanged group is not read again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from blake3 import blake3

from lmcore.corpus.formats import SourceFile
from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.range_cutter import CUT_VERSION, range_bytes
from lmcore.corpus.readers import read_ranges
from lmcore.corpus.scan import Scan
from lmcore.corpus.text_range import TextRange, reading_settings
from lmcore.settings.config import CorpusConfig
from lmcore.settings.section import fingerprint
from lmcore.store.artifacts import FORMAT_VERSION
from lmcore.store.files import DIGEST_BYTES


@dataclass(frozen=True)
class Group:
    """Files of one source and split that are cut into chunks together."""

    source: str
    split: str
    """"train" or "validation" for all documents, or "hash:FRACTION" for a split by document hash."""
    files: list[SourceFile]

    def index_key(self, config: CorpusConfig) -> str:
        """The key of the group's ``ChunkIndex``: the content and the way it is read, without paths."""
        files = [[file.kind, file.compression, file.digest] for file in self.files]
        settings = (reading_settings(config), config.chunk_bytes)
        return f"outline {fingerprint(FORMAT_VERSION, CUT_VERSION, *settings, files)}"

    @property
    def stored_bytes(self) -> int:
        return sum(file.stored_bytes for file in self.files)

    def replaced(self, path: str, *files: SourceFile) -> "Group":
        """The group with other files, or none, in place of a file."""
        kept = [file for file in self.files if file.path != path]
        return Group(self.source, self.split, sorted([*kept, *files], key=_content_order))


@dataclass(frozen=True)
class ChunkRef:
    """A chunk without its text: [number of the file in the group, start, stop, bytes] of each text range."""

    digest: str
    spans: list[list[int]]


@dataclass
class ChunkIndex:
    """The chunks of a group, and for each file the bytes that are in no text range."""

    chunks: list[ChunkRef] = field(default_factory=list)
    files: list[Ledger] = field(default_factory=list)

    def add_chunk(self, parts: list[tuple[int, TextRange]]) -> list[TextRange]:
        """The text ranges of a new chunk, given with the number of the file of each."""
        ranges = [part for _, part in parts]
        digest = blake3(b"".join(part.digest() for part in ranges)).hexdigest(DIGEST_BYTES)
        spans = [[number, part.start, part.stop, len(part.content)] for number, part in parts]
        self.chunks.append(ChunkRef(digest, spans))
        return ranges

    def to_json(self) -> Any:
        """The index as JSON values, without the content of skips."""
        return asdict(self, dict_factory=lambda items: {name: value for name, value in items if name != "content"})

    @classmethod
    def from_json(cls, content: Any) -> Self:
        """The index that ``to_json`` wrote, now or in an earlier version that counted more."""
        names = [item.name for item in fields(Ledger)]
        ledgers = [Ledger(**{name: file[name] for name in names}) for file in content["files"]]
        for ledger, file in zip(ledgers, content["files"], strict=True):
            ledger.skipped = [Skip(**skip) for skip in file["skipped"]]
        return cls([ChunkRef(**chunk) for chunk in content["chunks"]], ledgers)

    def unaccounted_bytes(self) -> int:
        """Bytes that are neither in a text range nor skipped; 0 unless the program has a bug."""
        read = sum(file.source_bytes for file in self.files)
        in_chunks = sum(size for chunk in self.chunks for *_, size in chunk.spans)
        return read - in_chunks - sum(file.skipped_bytes for file in self.files)


def chunk_key(digest: str, split: str, tokenizer_id: str, config: CorpusConfig) -> str:
    """The name of a chunk's shards: its content, the way it is read, the tokenizer and the split."""
    return fingerprint(FORMAT_VERSION, tokenizer_id, split, reading_settings(config), digest)


def group_files(found: Scan, config: CorpusConfig) -> Iterator[Group]:
    """The files of a corpus in groups that depend on content alone."""
    split = "train" if found.validation_files else f"hash:{config.validation_fraction}"
    for files, name in ((found.validation_files, "validation"), (found.files, split)):
        for source in sorted({file.source for file in files}):
            yield from _groups([file for file in files if file.source == source], source, name, config.chunk_bytes)


def _content_order(file: SourceFile) -> tuple[str, str]:
    return file.digest, file.path


def _groups(files: list[SourceFile], source: str, split: str, target: int) -> Iterator[Group]:
    # A changed file leaves one pack and joins another. Both are encoded again, so packs have a quarter of a chunk.
    shortest, between, longest = range_bytes(target // 4)
    pack: list[SourceFile] = []
    size = 0
    for file in sorted(files, key=_content_order):
        if file.stored_bytes >= target // 4:
            yield Group(source, split, [file])
            continue
        pack.append(file)
        size += file.stored_bytes
        if size >= longest or (size >= shortest and _ends_pack(file, between)):
            yield Group(source, split, pack)
            pack, size = [], 0
    if pack:
        yield Group(source, split, pack)


def _ends_pack(file: SourceFile, between: int) -> bool:
    """True with probability bytes / between, always the same for the same content."""
    return int(file.digest[16:], 16) < file.stored_bytes / between * 2**64


def read_chunks(group: Group, config: CorpusConfig, index: ChunkIndex) -> Iterator[list[TextRange]]:
    """The text ranges of each chunk of a group, in order. ``index`` gets an entry for each chunk and for each file.

    Raises FileChangedError if a file is not the one that was scanned; then the index is not valid.
    """
    shortest, _, longest = range_bytes(config.chunk_bytes)
    is_pack = group.files[0].stored_bytes < shortest
    parts: list[tuple[int, TextRange]] = []
    size = 0
    for number, file in enumerate(group.files):
        ledger = Ledger()
        index.files.append(ledger)
        for part in read_ranges(file, config, ledger):
            parts.append((number, part))
            size += len(part.content)
            if not is_pack or size >= longest:
                yield index.add_chunk(parts)
                parts, size = [], 0
    if parts:
        yield index.add_chunk(parts)
