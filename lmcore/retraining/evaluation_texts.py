"""Texts to score models on: decoded from a dataset, or read from a corpus. Nothing here needs torch."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import scan
from lmcore.dataset.source_age import age_of, base_source
from lmcore.dataset.stream import TokenStream, source_names
from lmcore.errors import ConfigError, StoreError
from lmcore.registry.versions import champion, find, models
from lmcore.settings.config import CorpusConfig
from lmcore.store.artifacts import read_manifest
from lmcore.store.files import hash_text
from lmcore.tokenizer.tokenizer import Tokenizer


class LabelledText(NamedTuple):
    """A document of an evaluation set."""

    text: str
    source: str
    group: str
    """What it is compared with: old or new."""
    text_bytes: int = -1
    """UTF-8 bytes of the text as it stands in its file, where it was normalized since; -1: those of ``text``."""


def dataset_texts(dataset: Path) -> Iterator[tuple[str, str, int]]:
    """(text, source, its bytes) of every validation document of a dataset, decoded from its shards.

    Raises StoreError where the ids do not give the text back, proved by its hash: the tokenizer was not exact.
    """
    tokenizer_id = read_manifest(dataset)["tokenizer_id"]
    tokenizer = Tokenizer(dataset.parent.parent / "tokenizers" / tokenizer_id)
    for source in source_names(dataset, "validation"):
        for ids, text_bytes, hash_ in TokenStream(dataset, "validation", source).documents():
            text = tokenizer.decode(ids[:-1].tolist())
            if hash_text(text.encode()) != hash_:
                raise StoreError(
                    f"document {hash_:016x} of dataset {dataset.name} cannot be decoded to its text: tokenizer "
                    f"{tokenizer_id} is not exact, so no model with another tokenizer can be scored on it. Give the "
                    "files of its text instead (--corpus), or retrain with the champion's tokenizer or an exact one"
                )
            yield text, source, text_bytes


def corpus_texts(config: CorpusConfig) -> Iterator[tuple[str, str, int]]:
    """(text, source, its bytes) of every document of a corpus. Raises as ``scan`` and ``read_documents`` do."""
    for file in scan(config).files:
        for document in read_documents(file, config, Ledger()):
            yield document.text, file.source, document.text_bytes


def held_out(dataset: Path) -> Iterator[LabelledText]:
    """The validation documents of a dataset, old and new as it tells them apart."""
    for text, source, text_bytes in dataset_texts(dataset):
        yield LabelledText(text, base_source(source), age_of(source), text_bytes)


def evaluation_texts(store: Path, corpus: list[str], dataset: str = "", model: str = "") -> Iterator[LabelledText]:
    """The validation documents of a dataset, by its id, as old text, and those of a corpus as new; a path is a source.

    Where neither is named, what is held out of the dataset of the champion of ``model``. Raises ConfigError when there
    is none, and as ``find``, ``dataset_texts`` and ``corpus_texts`` do.
    """
    if not corpus and not dataset:
        best = champion(store, model) if model in models(store) else None
        if best is None:
            raise ConfigError(
                f"there is no text to score: {model!r} is no model with a champion, whose validation text it could be. "
                "Give --corpus PATH, --dataset ID or --champion NAME"
            )
        return held_out(best.dataset)
    old = dataset_texts(find(store, dataset, "dataset", "folder")) if dataset else ()
    new = corpus_texts(CorpusConfig(sources={path: [path] for path in corpus})) if corpus else ()
    return chain(
        (LabelledText(text, source, "old", text_bytes) for text, source, text_bytes in old),
        (LabelledText(text, source, "new", text_bytes) for text, source, text_bytes in new),
    )
