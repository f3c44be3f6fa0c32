"""Scores of any model that transformers opens, on texts of datasets or corpora (``lm evaluate``).

A text is encoded with the model's tokenizer and scored in windows of the model's context. The score is divided by the
bytes of the text, so models with different tokenizers and contexts are comparable. Texts that look like control tokens
are encoded as text.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmcore.corpus.document_hashes import Hashes
from lmcore.corpus.ledger import Ledger
from lmcore.corpus.readers import read_documents
from lmcore.corpus.scan import scan
from lmcore.dataset.manifest import age_of, base_source
from lmcore.dataset.stream import TokenStream, source_names
from lmcore.errors import ConfigError, StoreError, TokenizerError
from lmcore.model.device import held_device
from lmcore.model.evaluate import Document, Scorer
from lmcore.model.export import open_model, weights_folder
from lmcore.model.loss import NextTokenLoss, sees_ahead
from lmcore.registry.versions import Version, champion, find, models, versions
from lmcore.retraining.anchor import aligned, own_scores_path, reference
from lmcore.runs.run import Run, trained_weights
from lmcore.runs.scores import DocumentScores, scores_path
from lmcore.settings.config import CorpusConfig
from lmcore.settings.section import fingerprint
from lmcore.settings.training import DeviceChoice, PrecisionChoice
from lmcore.store.artifacts import MANIFEST, read_manifest
from lmcore.store.files import hash_file, hash_text
from lmcore.tokenizer.make import identify_files
from lmcore.tokenizer.tokenizer import Tokenizer

_log = logging.getLogger(__name__)

_TEXTS_AT_ONCE = 256
"""Texts that are encoded together."""


class LabelledText(NamedTuple):
    """A document of an evaluation set."""

    text: str
    source: str
    group: str
    """What it is compared with: old or new."""
    text_bytes: int
    """UTF-8 bytes of the text as it stands in its file, before normalization."""


Labels = list[tuple[str, str]]
"""Source and group of every document."""


# --- texts ---


def dataset_texts(dataset: Path) -> Iterator[LabelledText]:
    """Every validation document of a dataset, decoded from its shards, in groups by age.

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
            yield LabelledText(text, base_source(source), age_of(source), text_bytes)


def corpus_texts(config: CorpusConfig) -> Iterator[LabelledText]:
    """Every document of a corpus, as new text. Raises as ``scan`` and ``read_documents`` do."""
    for file in scan(config).files:
        for document in read_documents(file, config, Ledger()):
            yield LabelledText(document.text, file.source, "new", document.text_bytes)


def evaluation_texts(store: Path, corpus: list[str], dataset: str = "", model: str = "") -> Iterator[LabelledText]:
    """The validation documents of a dataset, by its id, as old text, and those of a corpus as new; a path is a source.

    Where neither is named, what is held out of the dataset of the champion of ``model``. Raises ConfigError when there
    is none, and as ``find``, ``dataset_texts`` and ``corpus_texts`` do.
    """
    if not corpus and not dataset:
        best = champion(store, model) if model in models(store) else None
        if best is None:
            raise ConfigError(
                f"there is no text to score: {model!r} is not a model with a champion, so it has no validation text. "
                "Give --corpus PATH, --dataset ID or --champion NAME"
            )
        return dataset_texts(best.dataset)
    documents = dataset_texts(find(store, dataset, "dataset", "folder")) if dataset else ()
    new = corpus_texts(CorpusConfig(sources={path: [path] for path in corpus})) if corpus else ()
    return chain((each._replace(group="old") for each in documents), new)


# --- scores ---


def score_texts(folder: Path, texts: Iterable[LabelledText], block_size: int = 0) -> DocumentScores:
    """Score every text with the model in an export, a version, another transformers folder, a run or a checkpoint.

    ``block_size`` 0: the model's longest context. Raises what ``open_model`` raises, ConfigError when the model sees
    later tokens or has a shorter context, TokenizerError when its tokenizer has ids that it has no embedding for.
    """
    return _score(folder, partial(_encoded, texts), "auto", "auto", block_size)


def score_champion(best: Version, folder: Path) -> DocumentScores:
    """The champion's scores of the validation documents of the challenger's run in ``folder``, which keeps them.

    Each model is scored with the block size that it was trained with. Raises as ``score_validation`` does.
    """
    found = DocumentScores.find(folder, best.weights)
    if found is not None:
        return found
    run = Run.open(folder)
    train, block_size = run.config.train, best.receipt()["record"]["config"]["dataset"]["block_size"]
    scores = score_validation(best.folder, run.dataset_folder, train.device, train.precision, block_size)
    return scores.save_in(folder)


def score_on_anchor(best: Version, folder: Path) -> DocumentScores:
    """The challenger's scores of the documents of the champion's anchor; the run in ``folder`` keeps them.

    Most are among its validation documents. Those that left the corpus are scored now, from the datasets of the
    model's versions. A document that is in none of them is left out.
    """
    run, champions = Run.open(folder), DocumentScores.load(scores_path(folder, best.weights))
    own = DocumentScores.load(scores_path(folder, trained_weights(folder)))
    anchor = reference(best, champions)
    missing = np.setdiff1d(anchor.hashes, own.hashes)
    if len(missing):
        train = run.config.train
        texts = partial(_left_corpus, versions(best.store, best.model), missing)
        own = own.joined(_score(folder, texts, train.device, train.precision, own.block_size))
    scores = aligned(anchor, own)
    if gone := len(anchor) - len(scores):
        _log.warning("%d of %d documents of the anchor of %s are in no dataset any more", gone, len(anchor), best.model)
    return scores.save(own_scores_path(folder))


def _left_corpus(
    known: list[Version], hashes: Hashes, tokenizer: Tokenizer, embeddings: int, labels: Labels
) -> Iterator[Document]:
    """The documents with these hashes from the datasets of versions. A dataset that is gone is passed over."""
    remaining = set(hashes.tolist())
    for version in reversed(known):
        if not remaining:
            return
        with suppress(StoreError):
            for document in _validation_documents(version.dataset, tokenizer, embeddings, labels):
                if document[2] in remaining:
                    remaining.remove(document[2])
                    yield document
                else:
                    labels.pop()


def score_validation(
    folder: Path, dataset: Path, device: DeviceChoice, precision: PrecisionChoice, block_size: int = 0
) -> DocumentScores:
    """Score the validation documents of a dataset, in groups by age, as ``score_texts`` does.

    With the model's own tokenizer the ids of the dataset are scored as they are, so that it need not be exact; with
    another one their texts, and what ``dataset_texts`` raises is raised.
    """
    return _score(folder, partial(_validation_documents, dataset), device, precision, block_size)


def _validation_documents(dataset: Path, tokenizer: Tokenizer, embeddings: int, labels: Labels) -> Iterator[Document]:
    if tokenizer.id == read_manifest(dataset)["tokenizer_id"]:
        return _stored(dataset, labels)
    return _encoded(dataset_texts(dataset), tokenizer, embeddings, labels)


def _score(
    folder: Path,
    documents: Callable[[Tokenizer, int, Labels], Iterator[Document]],
    device: DeviceChoice,
    precision: PrecisionChoice,
    block_size: int = 0,
) -> DocumentScores:
    """Score what ``documents`` gives for the model's tokenizer and number of embeddings; it adds to the labels."""
    folder = weights_folder(folder)
    model, tokenizer, longest = open_model(folder)
    if sees_ahead(model):
        raise ConfigError(f"{type(model).__name__} in {folder} sees later tokens, so its losses mean nothing")
    if block_size > longest:
        raise ConfigError(f"block_size is {block_size}, and the model in {folder} has a context of {longest} tokens")
    block_size, labels = block_size or longest, Labels()
    with held_device(device) as held:
        scorer = Scorer(NextTokenLoss(model.to(held)), block_size, tokenizer.eos_id, precision)
        scored = scorer.each(documents(tokenizer, model.get_input_embeddings().num_embeddings, labels))
    return DocumentScores(
        weights=_weights(folder),
        tokenizer_id=tokenizer.id or identify_files(folder),
        block_size=block_size,
        sources=np.array([source for source, _ in labels], np.str_),
        groups=np.array([group for _, group in labels], np.str_),
        **vars(scored),
    )


def _stored(dataset: Path, labels: Labels) -> Iterator[Document]:
    """Validation documents as the shards have them."""
    for source in source_names(dataset, "validation"):
        for document in TokenStream(dataset, "validation", source).documents():
            labels.append((base_source(source), age_of(source)))
            yield document


def _encoded(
    texts: Iterable[LabelledText], tokenizer: Tokenizer, embeddings: int, labels: Labels
) -> Iterator[Document]:
    """Encoded texts; ``labels`` gets the source and the group of each."""
    remaining = iter(texts)
    while batch := list(islice(remaining, _TEXTS_AT_ONCE)):
        encoded = [each.text.encode() for each in batch]
        ids, lengths = tokenizer.encode_flat(encoded)
        if len(ids) and int(ids.max()) >= embeddings:
            raise TokenizerError(f"the tokenizer gives id {ids.max()}, and the model has embeddings for {embeddings:,}")
        parts = np.split(ids, np.cumsum(lengths)[:-1])
        for each, utf8, part in zip(batch, encoded, parts, strict=True):
            labels.append((each.source, each.group))
            yield part, each.text_bytes, hash_text(utf8)


def _weights(folder: Path) -> str:
    """The hash of the weights that the manifest names; without one, a hash of the files."""
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if "weights" in manifest:
            return str(manifest["weights"])
    hashes = {path.name: hash_file(path) for path in sorted(folder.glob("model*.safetensors"))}
    return hashes["model.safetensors"] if list(hashes) == ["model.safetensors"] else fingerprint(hashes)
