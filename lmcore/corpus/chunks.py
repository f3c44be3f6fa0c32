"""A corpus to chunks: the units of parallel work and of caching.

Small files share chunks, in the order of their content; large files have chunks of their own. Which files go
together, and where a large file is cut, is said by their content alone. A ``Group`` is the files that are cut
together; its ``ChunkIndex`` says into which chunks, so that an unchanged group is not read again.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from blake3 import blake3

from lmcore.corpus.ledger import Ledger, Skip
from lmcore.corpus.scan import Scan, SourceFile, reading
from lmcore.corpus.spans import CUT_VERSION, TextRange, range_bytes, read_ranges
from lmcore.settings.config import CorpusConfig
from lmcore.settings.section import fingerprint
from lmcore.store.artifacts import FORMAT_VERSION
from lmcore.store.files import DIGEST_BYTES


@dataclass(frozen=True)
class Group:
    """Files of one source and split that are cut into chunks together."""

    source: str
    split: str
    """"train" or "validation" for all of it, or "hash:FRACTION" for each document by its hash."""
    files: list[SourceFile]

    def key(self, config: CorpusConfig) -> str:
        """Names the content and the way it is read; not the paths."""
        files = [[file.kind, file.compression, file.digest] for file in self.files]
        return fingerprint(FORMAT_VERSION, CUT_VERSION, reading(config), config.chunk_bytes, files)

    @property
    def stored_bytes(self) -> int:
        return sum(file.stored_bytes for file in self.files)

    def without(self, path: str) -> "Group":
        return Group(self.source, self.split, [file for file in self.files if file.path != path])


@dataclass
class ChunkIndex:
    """What reading a group found: per chunk its digest and places, per file the bytes that are in no span."""

    chunks: list["ChunkRef"] = field(default_factory=list)
    files: list[Ledger] = field(default_factory=list)

    def to_json(self) -> Any:
        return asdict(self, dict_factory=lambda items: {name: value for name, value in items if name != "content"})

    @classmethod
    def from_json(cls, content: Any) -> "ChunkIndex":
        chunks = [ChunkRef(**chunk) for chunk in content["chunks"]]
        files = [Ledger(**{**file, "skipped": [Skip(**skip) for skip in file["skipped"]]}) for file in content["files"]]
        return cls(chunks, files)

    def unaccounted_bytes(self) -> int:
        read = sum(file.source_bytes for file in self.files)
        in_chunks = sum(place[3] for chunk in self.chunks for place in chunk.spans)
        return read - in_chunks - sum(file.skipped_bytes for file in self.files)


@dataclass(frozen=True)
class ChunkRef:
    """A chunk without its text: [number of the file in the group, start, stop, bytes] of every span."""

    digest: str
    spans: list[list[int]]


@dataclass(frozen=True)
class Chunk:
    """Spans that are encoded together."""

    spans: list[TextRange]

    def digest(self) -> str:
        digest = blake3()
        for span in self.spans:
            digest.update(span.digest())
        return digest.hexdigest(DIGEST_BYTES)


def chunk_key(digest: str, split: str, tokenizer_id: str, config: CorpusConfig) -> str:
    """Names a chunk's shards: the texts, how they are read, the tokenizer and the split."""
    return fingerprint(FORMAT_VERSION, tokenizer_id, split, reading(config), digest)


def groups(found: Scan, config: CorpusConfig) -> Iterator[Group]:
    """The files of a corpus in groups that depend on content alone."""
    split = "train" if found.validation_files else f"hash:{config.validation_fraction}"
    for files, name in ((found.validation_files, "validation"), (found.files, split)):
        for source in sorted({file.source for file in files}):
            yield from _groups([file for file in files if file.source == source], source, name, config.chunk_bytes)


def _groups(files: list[SourceFile], source: str, split: str, target: int) -> Iterator[Group]:
    # A file that changes leaves one pack and joins another: two chunks, so packs are of a quarter of a chunk.
    shortest, between, longest = range_bytes(target // 4)
    pack: list[SourceFile] = []
    size = 0
    for file in sorted(files, key=lambda file: (file.digest, file.path)):
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
    """True with probability bytes / between, the same for the same content."""
    return int(file.digest[16:], 16) < file.stored_bytes / between * 2**64


def read_chunks(group: Group, config: CorpusConfig, outline: ChunkIndex) -> Iterator[Chunk]:
    """The chunks of a group, in order; afterwards ``outline`` says what was found.

    Raises FileChangedError when a file is not the one that was scanned: then nothing of the group counts.
    """
    waiting: list[TextRange] = []
    places: list[list[int]] = []
    size = 0

    def chunk() -> Chunk:
        made = Chunk(list(waiting))
        outline.chunks.append(ChunkRef(made.digest(), list(places)))
        waiting.clear()
        places.clear()
        return made

    shortest, _, longest = range_bytes(config.chunk_bytes)
    is_pack = group.files[0].stored_bytes < shortest
    for number, file in enumerate(group.files):
        ledger = Ledger()
        outline.files.append(ledger)
        for span in read_ranges(file, config, ledger):
            waiting.append(span)
            places.append([number, span.start, span.stop, len(span.content)])
            size += len(span.content)
            if not is_pack or size >= longest:
                yield chunk()
                size = 0
    if waiting:
        yield chunk()
