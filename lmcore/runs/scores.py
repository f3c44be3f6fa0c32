"""The score of each document by a model, so that models with different tokenizers and contexts can be compared.

``DocumentScores`` is stored as an Arrow IPC file, one row a document, because stored files must open and other programs
read Arrow. The schema's metadata says format version, weights, tokenizer, block size, the fingerprint of the evaluation
set and a checksum of the figures.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from blake3 import blake3

from lmcore.errors import CorpusError, FormatError, StoreError, could_not_read, owner_named
from lmcore.store.artifacts import FORMAT_VERSION, check_version
from lmcore.store.files import DIGEST_BYTES, write_file
from lmcore.store.outputs import Record

_LABEL = pa.dictionary(pa.int32(), pa.string())
_NUMBERS = {"hash": pa.uint64(), "nats": pa.float64(), "tokens": pa.int64(), "text_bytes": pa.int64()}
_SCHEMA = pa.schema({**_NUMBERS, "source": _LABEL, "group": _LABEL})

Names = npt.NDArray[np.str_]
Label = Literal["group", "source"]
LABELS: tuple[Label, Label] = ("group", "source")


@dataclass(frozen=True)
class Score:
    """The sum of the scores of some documents."""

    documents: int = 0
    tokens: int = 0
    """Predicted ids: those of the documents and one EOS each."""
    text_bytes: int = 0
    nats: float = 0.0

    def __add__(self, other: "Score") -> "Score":
        return Score(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @classmethod
    def from_figures(cls, figures: Iterable[float]) -> "Score":
        """A score from its fields in order."""
        documents, tokens, text_bytes, nats = figures
        return cls(int(documents), int(tokens), int(text_bytes), float(nats))

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per token); infinite if it is too large for a float."""
        return math.exp(self.nats_per_token) if self.nats_per_token < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits for the text including EOS, divided by the bytes of the text."""
        return self.nats / math.log(2) / self.text_bytes

    def figures(self) -> dict[str, float]:
        """All figures as JSON values."""
        means = ("nats_per_token", "perplexity", "bits_per_byte")
        return asdict(self) | {name: getattr(self, name) for name in means}


def score_rows(scores: Iterable[tuple[str, Score]]) -> list[dict[str, str]]:
    """Rows of a table, one for each named score."""
    return [
        {
            "text": name,
            "documents": f"{score.documents:,}",
            "bytes": f"{score.text_bytes:,}",
            "tokens": f"{score.tokens:,}",
            "nats per token": f"{score.nats_per_token:.4f}",
            "perplexity": f"{score.perplexity:,.2f}",
            "bits per byte": f"{score.bits_per_byte:.4f}",
        }
        for name, score in scores
    ]


@dataclass(frozen=True, eq=False)
class DocumentScores:
    """The scores of one model on every document of an evaluation set. Each array has one entry a document."""

    weights: str
    """Hash of the weights."""
    tokenizer_id: str
    block_size: int
    """Tokens of the longest context."""
    hashes: npt.NDArray[np.uint64]
    """The first 64 bits of the BLAKE3 digest of each text."""
    nats: npt.NDArray[np.float64]
    """Loss on each text and its end."""
    tokens: npt.NDArray[np.int64]
    """Predicted ids, EOS included."""
    text_bytes: npt.NDArray[np.int64]
    """UTF-8 bytes."""
    sources: Names
    groups: Names
    """Ages: old, new."""

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.hashes)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the evaluation set: texts, bytes, sources and groups in any order, without the scores."""
        order = self.order()
        numbers = [column[order].tobytes() for column in (self.hashes, self.text_bytes)]
        names = ["\0".join(column[order].tolist()).encode() for column in (self.sources, self.groups)]
        return blake3(b"".join(numbers + names)).hexdigest(DIGEST_BYTES)

    @property
    def total(self) -> Score:
        """The score of all documents."""
        return self._score(np.ones(len(self), np.bool_))

    def by(self, label: Label) -> dict[str, Score]:
        """The score of every source or group."""
        names: Names = getattr(self, f"{label}s")
        return {name: self._score(names == name) for name in np.unique(names).tolist()}

    def figures(self) -> dict[str, Any]:
        """The totals as JSON values. Raises CorpusError when there is no text."""
        if not self.text_bytes.sum():
            raise CorpusError("there is no text to score")
        parts = {f"{label}s": {name: score.figures() for name, score in self.by(label).items()} for label in LABELS}
        return self._ids() | {"fingerprint": self.fingerprint} | self.total.figures() | parts

    def rows(self) -> list[dict[str, str]]:
        """Rows of a table: all documents, each group and each source."""
        named = [(name, score) for label in LABELS for name, score in self.by(label).items()]
        return score_rows([("all", self.total), *named])

    def taken(self, rows: npt.NDArray[np.intp]) -> Self:
        """The scores of some rows, by their numbers."""
        return self._with(*(column[rows] for column in self._columns()))

    def joined(self, other: Self) -> Self:
        """These rows, and those of ``other`` after them."""
        return self._with(*map(np.concatenate, zip(self._columns(), other._columns(), strict=True)))

    def _with(self, *columns: npt.NDArray[Any]) -> Self:
        return type(self)(self.weights, self.tokenizer_id, self.block_size, *columns)

    def _columns(self) -> tuple[npt.NDArray[Any], ...]:
        return self.hashes, self.nats, self.tokens, self.text_bytes, self.sources, self.groups

    def order(self) -> npt.NDArray[np.intp]:
        """Row numbers in an order that does not depend on the present order."""
        return np.lexsort((self.nats, self.text_bytes, self.groups, self.sources, self.hashes))

    def save(self, path: Path) -> Self:
        """Write the file, and return these scores."""
        about = {
            **{name: str(value) for name, value in self._ids().items()},
            "format_version": str(FORMAT_VERSION),
            "fingerprint": self.fingerprint,
            "checksum": self._checksum(),
        }
        arrays = [pa.array(column).cast(kind) for column, kind in zip(self._columns(), _SCHEMA.types, strict=True)]
        table, sink = pa.table(arrays, _SCHEMA.with_metadata(about)), pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        write_file(path, sink.getvalue().to_pybytes())
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of scores. Raises StoreError when it is missing, damaged, of another form or a newer format."""
        try:
            with owner_named(path):
                content = path.read_bytes()
            table = pa.ipc.open_file(pa.BufferReader(content)).read_all()
            table.validate(full=True)
            about = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
            check_version({"format_version": int(about["format_version"])}, path)
            if not table.schema.equals(_SCHEMA):
                raise ValueError(f"its columns are {table.schema.names}")
            numbers = [table[name].to_numpy() for name in _NUMBERS]
            labels = [np.array(table[name].to_pylist(), np.str_) for name in ("source", "group")]
            scores = cls(about["weights"], about["tokenizer_id"], int(about["block_size"]), *numbers, *labels)
            if (about["fingerprint"], about["checksum"]) != (scores.fingerprint, scores._checksum()):
                raise ValueError("they are not those written")
        except FileNotFoundError:
            raise StoreError(f"there are no scores in {path}: evaluate the model again") from None
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            if could_not_read(error):
                raise
            raise StoreError(f"scores in {path} are damaged: {error}. Evaluate the model again") from error
        return scores

    @classmethod
    def find(cls, folder: Path, weights: str) -> Self | None:
        """The scores of some weights in a run's folder; None where there are none, or they are damaged."""
        try:
            return cls.load(scores_path(folder, weights))
        except FormatError:
            raise
        except StoreError:
            return None

    def save_in(self, folder: Path) -> Self:
        """Write the file into a run's folder, and return these scores."""
        path = scores_path(folder, self.weights)
        path.parent.mkdir(exist_ok=True)
        return self.save(path)

    def _ids(self) -> dict[str, Any]:
        return {"weights": self.weights, "tokenizer_id": self.tokenizer_id, "block_size": self.block_size}

    def _checksum(self) -> str:
        columns = (self.hashes, self.nats, self.tokens, self.text_bytes)
        return blake3(b"".join(column.tobytes() for column in columns)).hexdigest(DIGEST_BYTES)

    def _score(self, rows: npt.NDArray[np.bool_]) -> Score:
        sums = (column[rows].sum() for column in (self.tokens, self.text_bytes, self.nats))
        return Score.from_figures([rows.sum(), *sums])


def scores_path(folder: Path, weights: str) -> Path:
    """Where a run's folder holds the scores of some weights on the run's validation documents."""
    return folder / "scores" / f"{weights[:16]}.arrow"


class Evaluation(Record):
    """The whole validation split, scored by the trained model."""

    file_name = "evaluation.json"
    weights: str
    """Hash of the weights that were scored."""
    documents: int
    tokens: int
    text_bytes: int
    nats: float
    nats_per_token: float
    perplexity: float
    bits_per_byte: float
    sources: dict[str, Score]
    """By source, where there are several."""

    def verify(self) -> None:
        super().verify()
        DocumentScores.load(scores_path(self.folder, self.weights))
