"""Scores of any model that transformers opens, on texts of datasets or corpora (``lm evaluate``).

A text is encoded with the model's tokenizer and scored in windows of the model's context. The score is divided by the
bytes of the text, so models with different tokenizers and contexts are comparable. Texts that look like control tokens
are encoded as text.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np

from lmcore.dataset.manifest import age_of, base_source
from lmcore.dataset.stream import TokenStream, source_names
from lmcore.errors import ConfigError, TokenizerError
from lmcore.model.device import choose_device
from lmcore.model.evaluate import Document, Scorer
from lmcore.model.export import open_model, weights_folder
from lmcore.model.loss import NextTokenLoss, sees_ahead
from lmcore.retraining.challenge import Champion
from lmcore.retraining.evaluation_texts import LabelledText, held_out
from lmcore.runs.run import Run
from lmcore.runs.scores import DocumentScores
from lmcore.settings.section import fingerprint
from lmcore.settings.training import DeviceChoice, PrecisionChoice
from lmcore.store.artifacts import MANIFEST, read_manifest
from lmcore.store.files import hash_file, hash_text
from lmcore.tokenizer.make import identify_files
from lmcore.tokenizer.tokenizer import Tokenizer

Labels = list[tuple[str, str]]
"""Source and group of every document."""

_TEXTS_AT_ONCE = 256
"""Texts that are encoded together."""


def score_texts(folder: Path, texts: Iterable[LabelledText], block_size: int = 0) -> DocumentScores:
    """Score every text with the model in an export, a version, another transformers folder, a run or a checkpoint.

    ``block_size`` 0: the model's longest context. Raises what ``open_model`` raises, ConfigError when the model sees
    later tokens or has a shorter context, TokenizerError when its tokenizer has ids that it has no embedding for.
    """
    return _score(folder, partial(_encoded, texts), "auto", "auto", block_size)


def score_champion(best: Champion, folder: Path) -> DocumentScores:
    """The champion's scores of the validation documents of the challenger's run in ``folder``, which keeps them.

    Each model is scored with the block size that it was trained with. Raises as ``score_validation`` does.
    """
    found = DocumentScores.find(folder, best.weights)
    if found is not None:
        return found
    run = Run.open(folder)
    train = run.config.train
    scores = score_validation(best.version.folder, run.dataset_folder, train.device, train.precision, best.block_size)
    return scores.save_in(folder)


def score_validation(
    folder: Path, dataset: Path, device: DeviceChoice, precision: PrecisionChoice, block_size: int = 0
) -> DocumentScores:
    """Score the validation documents of a dataset, in groups by age, as ``score_texts`` does.

    With the model's own tokenizer the ids of the dataset are scored as they are, so that it need not be exact; with
    another one their texts, and what ``dataset_texts`` raises is raised.
    """

    def documents(tokenizer: Tokenizer, embeddings: int, labels: Labels) -> Iterator[Document]:
        if tokenizer.id == read_manifest(dataset)["tokenizer_id"]:
            yield from _stored(dataset, labels)
        else:
            yield from _encoded(held_out(dataset), tokenizer, embeddings, labels)

    return _score(folder, documents, device, precision, block_size)


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
    model.to(choose_device(device))
    block_size = block_size or longest
    scorer = Scorer(NextTokenLoss(model), block_size, tokenizer.eos_id, precision)
    labels: Labels = []
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
            yield part, len(utf8) if each.text_bytes < 0 else each.text_bytes, hash_text(utf8)


def _weights(folder: Path) -> str:
    """The hash by which a run knows them, or where no manifest tells, one of the files."""
    if (folder / MANIFEST).exists():
        manifest = read_manifest(folder)
        if "weights" in manifest:
            return str(manifest["weights"])
    hashes = {path.name: hash_file(path) for path in sorted(folder.glob("model*.safetensors"))}
    return hashes["model.safetensors"] if list(hashes) == ["model.safetensors"] else fingerprint(hashes)
