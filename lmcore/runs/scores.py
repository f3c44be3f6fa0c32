"""The score of each document by a model, so that models with different tokenizers and contexts can be compared.

``DocumentScores`` is stored as an Arrow IPC file of one record batch, one row a document:

    hash        uint64               the first 64 bits of the BLAKE3 digest of its text
    nats        float64              loss of the model on the text and its end
    tokens      int64                ids that were predicted, EOS included
    text_bytes  int64                UTF-8 bytes of the text
    source      dictionary<string>   name of its source
    group       dictionary<string>   age of the text: old, new

The schema's metadata says format version, weights, tokenizer, block size, the fingerprint of the evaluation set and a
checksum of the figures. Nothing here needs torch.
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

_COLUMNS = {
    "hash": pa.uint64(),
    "nats": pa.float64(),
    "tokens": pa.int64(),
    "text_bytes": pa.int64(),
    "source": pa.dictionary(pa.int32(), pa.string()),
    "group": pa.dictionary(pa.int32(), pa.string()),
}

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
    """The scores of one model on every document of an evaluation set. Each column has one row a document."""

    weights: str
    """Hash of the weights."""
    tokenizer_id: str
    block_size: int
    """Tokens of the longest context."""
    hashes: npt.NDArray[np.uint64]
    nats: npt.NDArray[np.float64]
    tokens: npt.NDArray[np.int64]
    text_bytes: npt.NDArray[np.int64]
    sources: Names
    groups: Names

    def __post_init__(self) -> None:
        lengths = {len(column) for column in self._columns().values()}
        if len(lengths) != 1:
            raise ValueError(f"columns of documents have different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        """Number of documents."""
        return len(self.hashes)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the evaluation set: texts, bytes, sources and groups in any order, without the scores."""
        order, digest = self.order(), blake3()
        for column in (self.hashes, self.text_bytes):
            digest.update(np.ascontiguousarray(column[order]).view(np.uint8).data)
        for names in (self.sources, self.groups):
            digest.update("\0".join(names[order].tolist()).encode())
        return digest.hexdigest(DIGEST_BYTES)

    @property
    def total(self) -> Score:
        """The score of all documents."""
        return self._score(np.ones(len(self), np.bool_))

    def by(self, label: Label) -> dict[str, Score]:
        """The score of every source or group."""
        names = self.sources if label == "source" else self.groups
        return {name: self._score(names == name) for name in np.unique(names).tolist()}

    def figures(self) -> dict[str, Any]:
        """The totals as JSON values. Raises CorpusError when there is no text."""
        if not self.text_bytes.sum():
            raise CorpusError("there is no text to score")
        parts: dict[str, Any] = {
            f"{label}s": {name: _figures(score) for name, score in self.by(label).items()} for label in LABELS
        }
        ids = {"weights": self.weights, "tokenizer_id": self.tokenizer_id, "block_size": self.block_size}
        return ids | {"fingerprint": self.fingerprint} | _figures(self.total) | parts

    def rows(self) -> list[dict[str, str]]:
        """Rows of a table: all documents, each group and each source."""
        named = [(name, score) for label in LABELS for name, score in self.by(label).items()]
        return score_rows([("all", self.total), *named])

    def taken(self, rows: npt.NDArray[np.intp]) -> Self:
        """The scores of some rows, by their numbers."""
        return self._with({name: column[rows] for name, column in self._columns().items()})

    def joined(self, other: Self) -> Self:
        """These rows and those of the same model or another one."""
        others = other._columns()
        return self._with({name: np.concatenate([column, others[name]]) for name, column in self._columns().items()})

    def _with(self, columns: dict[str, npt.NDArray[Any]]) -> Self:
        return type(self)(self.weights, self.tokenizer_id, self.block_size, *columns.values())

    def order(self) -> npt.NDArray[np.intp]:
        """Row numbers in an order that does not depend on the present order."""
        return np.lexsort((self.nats, self.text_bytes, self.groups, self.sources, self.hashes))

    def save(self, path: Path) -> Self:
        """Write the file, and return these scores."""
        arrays = [pa.array(column, _plain(_COLUMNS[name])) for name, column in self._columns().items()]
        metadata = {
            "format_version": str(FORMAT_VERSION),
            "weights": self.weights,
            "tokenizer_id": self.tokenizer_id,
            "block_size": str(self.block_size),
            "fingerprint": self.fingerprint,
            "checksum": self._checksum(),
        }
        encoded = [array.cast(kind) for array, kind in zip(arrays, _COLUMNS.values(), strict=True)]
        batch = pa.record_batch(encoded, schema=pa.schema(list(_COLUMNS.items()), metadata))
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        write_file(path, sink.getvalue().to_pybytes())
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file of scores. Raises StoreError when it is missing, damaged, of another form or a newer format."""
        try:
            with owner_named(path):
                content = path.read_bytes()
            batch = pa.ipc.open_file(pa.BufferReader(content)).get_batch(0)
            batch.validate(full=True)
            about = {key.decode(): value.decode() for key, value in (batch.schema.metadata or {}).items()}
            check_version({"format_version": int(about["format_version"])}, path)
            if {field.name: field.type for field in batch.schema} != _COLUMNS:
                raise pa.ArrowInvalid(f"its columns are {batch.schema.names}")
            columns = {name: _to_numpy(batch.column(name)) for name in _COLUMNS}
            scores = cls(about["weights"], about["tokenizer_id"], int(about["block_size"]), *columns.values())
        except FileNotFoundError:
            raise StoreError(f"there are no scores in {path}: evaluate the model again") from None
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            if could_not_read(error):
                raise
            raise StoreError(f"scores in {path} are damaged: {error}. Evaluate the model again") from error
        if (about.get("fingerprint"), about.get("checksum")) != (scores.fingerprint, scores._checksum()):
            raise StoreError(f"scores in {path} are damaged: they are not those written. Evaluate the model again")
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

    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        columns = (self.hashes, self.nats, self.tokens, self.text_bytes, self.sources, self.groups)
        return dict(zip(_COLUMNS, columns, strict=True))

    def _checksum(self) -> str:
        digest = blake3()
        for column in (self.hashes, self.nats, self.tokens, self.text_bytes):
            digest.update(np.ascontiguousarray(column).view(np.uint8).data)
        return digest.hexdigest(DIGEST_BYTES)

    def _score(self, rows: npt.NDArray[np.bool_]) -> Score:
        sums = (column[rows].sum() for column in (self.tokens, self.text_bytes, self.nats))
        return Score.from_figures([rows.sum(), *sums])


def scores_path(folder: Path, weights: str) -> Path:
    """Where a run's folder holds the scores of some weights on the run's validation documents."""
    return folder / "scores" / f"{weights[:16]}.arrow"


def _figures(score: Score) -> dict[str, float]:
    about = {name: getattr(score, name) for name in ("nats_per_token", "perplexity", "bits_per_byte")}
    return asdict(score) | about


def _plain(kind: Any) -> Any:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def _to_numpy(column: Any) -> npt.NDArray[Any]:
    if pa.types.is_dictionary(column.type):
        return np.array(column.to_pylist(), dtype=np.str_)
    return np.array(column)


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
