"""How well a tokenizer fits a dataset, counted from its shards.

Every id has the script of its letters; a document has the script of most of its ids. Only the first ``MOST_TOKENS`` ids
are counted, and the report says so. Therefore it takes about a second and a few hundred MB for any dataset.
"""

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lmcore.dataset.shards import SPLITS, Shard, shard_path
from lmcore.store.artifacts import read_manifest
from lmcore.tokenizer.tokenizer import Tokenizer

MOST_TOKENS = 20_000_000
_KANA, _KANJI, _NO_LETTERS = "kana", "kanji", "digits and symbols"
_SHARE_OF_KANA = 0.05
"""Least share of kana among kana and kanji in a Japanese document. Japanese prose has about a half."""

_NAMES = {"HIRAGANA": _KANA, "KATAKANA": _KANA, "KATAKANA-HIRAGANA": _KANA, "CJK": _KANJI, "IDEOGRAPHIC": _KANJI}


@dataclass(frozen=True)
class TokenizerReport:
    """Figures of a tokenizer on a dataset. EOS is not counted anywhere."""

    documents: int
    tokens: int
    text_bytes: int
    all_tokens: int
    """In the whole dataset, EOS included; more than ``tokens`` + ``documents`` if only a part was counted."""
    languages: dict[str, tuple[int, int, int]]
    """Documents, tokens and bytes of text of each, most bytes first."""
    partial_tokens: int
    """Ids that hold only part of a character, because no piece spells the whole one."""
    unknown_tokens: int
    pieces: int
    used_pieces: int
    longest: list[tuple[str, int]]
    """The 20 longest pieces in use, and how often."""

    @cached_property
    def bytes_per_token(self) -> float:
        return self.text_bytes / max(1, self.tokens)

    def markdown(self) -> str:
        """The section of the tokenizer's page."""
        shares = {
            "ids that hold part of a character (byte fallback)": self.partial_tokens / max(1, self.tokens),
            "unknown ids": self.unknown_tokens / max(1, self.tokens),
            "vocabulary in use": self.used_pieces / self.pieces,
        }
        part = self.documents + self.tokens < self.all_tokens
        lines = [
            "## How it fits the text",
            "",
            f"Counted over {'the first ' if part else ''}{self.tokens:,} tokens in {self.documents:,} documents"
            f"{f' of {self.all_tokens:,} tokens' if part else ''}.",
            "",
            "| text | documents | tokens | bytes | bytes per token |",
            "| --- | --- | --- | --- | --- |",
            _row("all", self.documents, self.tokens, self.text_bytes),
            *(_row(name, *figures) for name, figures in self.languages.items()),
            "",
            *(f"- {name}: {share:.3%}" for name, share in shares.items()),
            "",
            "The longest pieces in use, with their counts:",
            "",
            # Indented, so that no piece can leave the block; repr, so that none breaks its line.
            *(f"    {count:>9,}  {piece!r}" for piece, count in self.longest),
        ]
        return "\n".join(lines)


def _row(name: str, documents: int, tokens: int, text_bytes: int) -> str:
    return f"| {name} | {documents:,} | {tokens:,} | {text_bytes:,} | {text_bytes / max(1, tokens):.2f} |"


def dataset_report(dataset_folder: Path, tokenizer_id: str) -> TokenizerReport:
    """The report of a dataset in the store. Raises StoreError when a shard or the tokenizer is damaged."""
    store = dataset_folder.parent.parent
    manifest = read_manifest(dataset_folder)
    paths = (shard_path(store / "shards" / chunk["key"], split) for chunk in manifest["chunks"] for split in SPLITS)
    all_tokens = sum(split["tokens"] for split in manifest["splits"].values())
    tokenizer = Tokenizer(store / "tokenizers" / tokenizer_id)
    return tokenizer_report(tokenizer, (Shard(path, tokenizer_id) for path in paths), all_tokens)


def tokenizer_report(tokenizer: Tokenizer, shards: Iterable[Shard], all_tokens: int) -> TokenizerReport:
    """Count ids and documents in the shards, up to MOST_TOKENS."""
    pieces = tokenizer.pieces()
    names, script_of_id = _scripts(pieces)
    bytes_of_letters = np.array([len(_letters(piece.decode(errors="ignore")).encode()) for piece in pieces])
    counts = np.zeros(len(pieces), np.int64)
    languages: dict[str, npt.NDArray[np.int64]] = {}
    for tokens, offsets, text_bytes in _documents(shards):
        counts += np.bincount(tokens, minlength=len(pieces))
        lengths = np.diff(offsets)
        kinds = _languages(names, script_of_id[tokens], bytes_of_letters[tokens], lengths)
        for kind in np.unique(kinds):
            at = kinds == kind
            figures = np.array([at.sum(), lengths[at].sum() - at.sum(), text_bytes[at].sum()])
            languages[str(kind)] = languages.get(str(kind), 0) + figures
    return _summary(tokenizer, pieces, counts, languages, all_tokens)


def _documents(shards: Iterable[Shard]) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]]:
    """Ids, offsets and bytes of text, shard by shard; whole documents, MOST_TOKENS at most but for the first one."""
    left = MOST_TOKENS
    for shard in shards:
        rows = int(np.searchsorted(shard.offsets, left, "right")) - 1
        if rows:
            offsets = shard.offsets[: rows + 1]
            yield shard.tokens[: offsets[-1]], offsets, shard.text_bytes[:rows]
        left -= int(shard.offsets[rows])
        if rows < len(shard):
            return


def _scripts(pieces: list[bytes]) -> tuple[list[str], npt.NDArray[np.intp]]:
    """The names of all scripts, and the index of every id's; digits, symbols and parts of characters have the first."""
    scripts = [script(piece.decode(errors="ignore")) for piece in pieces]
    names = [_NO_LETTERS, _KANA, _KANJI, *sorted(set(scripts) - {_NO_LETTERS, _KANA, _KANJI})]
    index = {name: place for place, name in enumerate(names)}
    return names, np.array([index[name] for name in scripts])


def script(text: str) -> str:
    """Kana where there is any, otherwise the script of the first letter, by the name that Unicode gives it."""
    found = [_script_of_letter(letter) for letter in _letters(text)]
    return _KANA if _KANA in found else next(iter(found), _NO_LETTERS)


def _letters(text: str) -> str:
    return "".join(character for character in text if unicodedata.category(character)[0] == "L")


def _script_of_letter(letter: str) -> str:
    words = unicodedata.name(letter, "OTHER").split()
    word = words[words[0] in ("FULLWIDTH", "HALFWIDTH")]
    return _NAMES.get(word, word.capitalize())


def _languages(
    names: list[str], scripts: npt.NDArray[np.intp], letter_bytes: npt.NDArray[np.int64], lengths: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """The language or script of every document, by name: that of most bytes of its letters. The arrays are by token."""
    cells = np.repeat(np.arange(len(lengths)), lengths) * len(names) + scripts
    of_document = np.bincount(cells, letter_bytes, minlength=len(lengths) * len(names)).reshape(-1, len(names))
    kana, kanji = of_document[:, 1].copy(), of_document[:, 2].copy()
    of_document[:, 1] += kanji
    of_document[:, [0, 2]] = 0
    labels = np.array([_NO_LETTERS, "Japanese", "Chinese", *names[3:]])
    most = of_document.argmax(axis=1)
    return labels[np.where((most == 1) & (kana < _SHARE_OF_KANA * (kana + kanji)), 2, most)]


def _summary(
    tokenizer: Tokenizer, pieces: list[bytes], counts: npt.NDArray[Any], languages: dict[str, Any], all_tokens: int
) -> TokenizerReport:
    documents, tokens, text_bytes = sum(languages.values(), np.zeros(3, np.int64)).tolist()
    partial = [index for index, piece in enumerate(pieces) if piece.decode(errors="ignore").encode() != piece]
    texts = {i: pieces[i].decode(errors="replace") for i in np.flatnonzero(counts).tolist() if pieces[i]}
    longest = sorted(texts, key=lambda i: (-len(texts[i]), i))[:20]
    return TokenizerReport(
        documents=documents,
        tokens=tokens,
        text_bytes=text_bytes,
        all_tokens=all_tokens,
        languages={name: tuple(row.tolist()) for name, row in sorted(languages.items(), key=lambda item: -item[1][2])},
        partial_tokens=int(counts[partial].sum()),
        unknown_tokens=0 if tokenizer.unknown_id is None else int(counts[tokenizer.unknown_id]),
        pieces=len(pieces),
        used_pieces=int(np.count_nonzero(counts)),
        longest=[(texts[i], int(counts[i])) for i in longest],
    )
