"""A tokenizer: text to ids and back, by a SentencePiece model or by a fast tokenizer of transformers."""

import json
import re
import unicodedata
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import sentencepiece

from lmcore.store.artifacts import read_manifest, verify_artifact
from lmcore.store.outputs import Output
from lmcore.tokenizer.byte_bpe import bytes_of_piece
from lmcore.tokenizer.sentencepiece_model import (
    MODEL_FILE,
    character_pairs,
    read_model,
    sentencepiece_of,
    split_exactly,
)
from lmcore.tokenizer.transformers_view import open_in_transformers

TOKENIZER_FILES = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model")
"""The files of a tokenizer in a folder of transformers."""


class TokenizerInfo(Output):
    """A tokenizer in the store."""

    id: str
    folder: Path
    source: str
    model_type: str
    vocab_size: int
    eos_id: int
    pad_id: int
    corpus_bytes: int
    """Bytes of text available for training; 0 for a loaded tokenizer."""
    seen_bytes: int
    """Bytes of text that the trainer saw."""

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The tokenizer in a folder of the store. Raises StoreError if there is none."""
        manifest = read_manifest(folder)
        fields = {name: manifest[name] for name in cls.model_fields if name != "folder"}
        return cls(folder=folder, **fields)

    def verify(self) -> None:
        """Raise StoreError unless all files of the tokenizer are complete and unchanged."""
        verify_artifact(self.folder)


class Tokenizer:
    """Text to ids and back. Text never becomes a control id.

    ``about`` replaces the manifest for a folder outside the store, such as an export. ``normalize`` is the Unicode
    normalization of the training text; each text is normalized first.
    """

    def __init__(self, folder: Path, about: dict[str, Any] | None = None, normalize: str = "") -> None:
        manifest = about or read_manifest(folder)
        self.id: str = manifest["id"]
        self.vocab_size: int = manifest["vocab_size"]
        self.eos_id: int = manifest["eos_id"]
        self.pad_id: int = manifest["pad_id"]
        self._sentencepiece = None
        self._pairs: frozenset[str] = frozenset()
        self._normalize: Any = normalize
        if about:
            proto = sentencepiece_of(folder)
        else:
            proto = read_model(folder / MODEL_FILE) if (folder / MODEL_FILE).exists() else None
        if proto is not None:
            self._sentencepiece = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
            self._pairs = character_pairs(proto)
        else:
            self._fast = open_in_transformers(folder).backend_tokenizer
            self._fast.encode_special_tokens = True

    @property
    def dtype(self) -> npt.DTypeLike:
        """uint16 if the ids fit, else uint32."""
        return np.uint16 if self.vocab_size <= 2**16 else np.uint32

    def encode_flat(self, texts: list[bytes], threads: int = -1) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """The ids of all texts (UTF-8) in one array, each with EOS, and the number of ids of each text.

        ``threads`` -1: one for each core. A tokenizer.json always uses all cores (RAYON_NUM_THREADS limits it).
        """
        if self._normalize:
            texts = [unicodedata.normalize(self._normalize, text.decode()).encode() for text in texts]
        parts = [split_exactly(text, self._pairs) for text in texts]
        arrays = self._encode([part for text in parts for part in text], threads)
        ends = np.cumsum([0, *map(len, arrays)])[np.cumsum([0, *map(len, parts)])]
        eos, remaining = np.array([self.eos_id], self.dtype), iter(arrays)
        pieces = [np.empty(0, self.dtype)]
        for part in parts:
            pieces += [*islice(remaining, len(part)), eos]
        return np.concatenate(pieces, dtype=self.dtype, casting="unsafe"), np.diff(ends) + 1

    def _encode(self, texts: list[bytes], threads: int) -> list[npt.NDArray[Any]]:
        if self._sentencepiece is not None:
            arrays: list[npt.NDArray[Any]] = self._sentencepiece.encode(texts, return_type="numpy", num_threads=threads)
            return arrays
        encodings = self._fast.encode_batch_fast([text.decode() for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self.dtype) for encoding in encodings]

    def encode(self, text: str) -> list[int]:
        """The ids of one text, without special ids."""
        ids: list[int] = self.encode_flat([text.encode()])[0][:-1].tolist()
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids. Special ids give no text."""
        if self._sentencepiece is not None:
            return str(self._sentencepiece.decode(ids))
        return str(self._fast.decode(ids, skip_special_tokens=True))

    @property
    def unknown_id(self) -> int | None:
        """The id of text that no piece covers; None if pieces cover all text."""
        if self._sentencepiece is not None:
            return int(self._sentencepiece.unk_id())
        name = getattr(self._fast.model, "unk_token", None)
        return None if name is None else self._fast.token_to_id(name)

    def pieces(self) -> list[bytes]:
        """The UTF-8 bytes of each id. A byte piece is a part of a character, a control id is empty."""
        if self._sentencepiece is not None:
            is_control = self._sentencepiece.is_control
            names = self._sentencepiece.id_to_piece(list(range(self.vocab_size)))
            return [b"" if is_control(i) or i == self.unknown_id else _bytes_of(name) for i, name in enumerate(names)]
        found = [b""] * self.vocab_size
        added = self._fast.get_added_tokens_decoder()
        byte_level = "ByteLevel" in json.dumps(json.loads(self._fast.to_str())["decoder"])
        bytes_of = bytes_of_piece if byte_level else _bytes_of
        for name, i in self._fast.get_vocab().items():
            if i != self.unknown_id and not (i in added and added[i].special):
                found[i] = name.encode() if i in added else bytes_of(name)
        return found


def _bytes_of(piece: str) -> bytes:
    """The bytes of a SentencePiece piece."""
    is_byte = re.fullmatch("<0x([0-9A-F]{2})>", piece)
    return bytes.fromhex(is_byte[1]) if is_byte else piece.replace("\u2581", " ").encode()
