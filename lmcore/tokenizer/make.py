"""Make a tokenizer: train it on a corpus, or load it. Either way it is an artifact that transformers opens."""

from pathlib import Path
from typing import Any

from lmcore.corpus.listing import Corpus
from lmcore.errors import TokenizerError
from lmcore.progress import Update, unwatched
from lmcore.settings.config import CorpusConfig, TokenizerConfig
from lmcore.settings.section import fingerprint, result_fields
from lmcore.store.artifacts import FORMAT_VERSION, find_artifact, write_artifact
from lmcore.store.files import hash_file
from lmcore.store.hub import resolve
from lmcore.tokenizer.byte_bpe import train_byte_bpe
from lmcore.tokenizer.sentencepiece_model import read_model, save_model, sentencepiece_of, train_model
from lmcore.tokenizer.tokenizer import TOKENIZER_FILES, TokenizerInfo
from lmcore.tokenizer.training_text import training_texts
from lmcore.tokenizer.transformers_view import check_in_transformers, open_in_transformers, save_loaded

TRAINING_VERSION = 2
"""Version of the training rules. Another version gives other pieces for the same text and settings."""


def tokenizer_inputs(config: TokenizerConfig, corpus: Corpus) -> dict[str, Any]:
    """Everything that ``make_tokenizer`` depends on. Raises the errors of ``identify``."""
    if config.source == "train":
        return {"corpus": corpus.id, "tokenizer": result_fields(config), "training_version": TRAINING_VERSION}
    return {"tokenizer": {"source": identify(config, corpus)}}


def identify(config: TokenizerConfig, corpus: Corpus) -> str:
    """The id of the tokenizer that ``make_tokenizer`` returns; nothing is made.

    Raises TokenizerError if there is no tokenizer at config.source, ConnectionError if the hub does not answer.
    """
    if config.source == "train":
        return fingerprint(FORMAT_VERSION, TRAINING_VERSION, result_fields(config), corpus.id)
    return identify_files(_resolve(config.source))


def identify_files(source: Path) -> str:
    """The id of a .model file or of the tokenizer in a folder. Raises TokenizerError if the folder holds none."""
    files = [source] if source.is_file() else _tokenizer_files(source)
    return fingerprint(FORMAT_VERSION, sorted([file.name, hash_file(file)] for file in files))


def make_tokenizer(
    config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, store: Path, progress: Update = unwatched
) -> TokenizerInfo:
    """The tokenizer in ``store``, trained or loaded if it is not there yet.

    Raises TokenizerError if there is no tokenizer or none that fits the settings, CorpusError if there is no text, and
    ConnectionError if the hub does not answer.
    """
    tokenizer_id = identify(config, corpus)
    folder = store / "tokenizers" / tokenizer_id
    if not find_artifact(folder):
        about: dict[str, Any] = {"kind": "tokenizer", "id": tokenizer_id, "source": config.source}
        with write_artifact(folder, lambda: about) as temporary:
            if config.source == "train":
                about |= _train(config, corpus_config, corpus, temporary, progress)
            else:
                about |= _load(_resolve(config.source), temporary)
    if config.source != "train":
        _require_special_tokens(config, folder)
    return TokenizerInfo.open(folder)


def _train(
    config: TokenizerConfig, corpus_config: CorpusConfig, corpus: Corpus, folder: Path, progress: Update
) -> dict[str, Any]:
    store = folder.parent.parent
    texts, corpus_bytes = training_texts(config.max_train_bytes, corpus_config, corpus, store, progress)
    progress(0, 0, f"training {config.vocab_size:,} pieces on {len(texts):,} documents")
    if config.model_type == "byte_bpe":
        return {**train_byte_bpe(config, texts, folder), "corpus_bytes": corpus_bytes}
    proto, seen_bytes = train_model(config, texts)
    return {**save_model(proto, folder, texts[:256]), "corpus_bytes": corpus_bytes, "seen_bytes": seen_bytes}


def _resolve(source: str) -> Path:
    """The file or folder of a tokenizer.source."""
    return resolve(source, "tokenizer.source", "tokenizer", (*TOKENIZER_FILES, "config.json"), TokenizerError)


def _tokenizer_files(folder: Path) -> list[Path]:
    files = sorted({file for pattern in TOKENIZER_FILES for file in folder.glob(pattern)})
    if not files:
        raise TokenizerError(f"tokenizer.source: {folder} holds no tokenizer (none of {', '.join(TOKENIZER_FILES)})")
    return files


def _load(source: Path, folder: Path) -> dict[str, Any]:
    loaded = {"corpus_bytes": 0, "seen_bytes": 0}
    if source.is_file():
        return save_model(read_model(source), folder, []) | loaded
    if (proto := sentencepiece_of(source)) is not None:
        return save_model(proto, folder, []) | loaded
    tokenizer = open_in_transformers(source)
    if not hasattr(tokenizer, "backend_tokenizer"):
        raise TokenizerError(
            f"tokenizer.source: {source} has no tokenizer.json, and {type(tokenizer).__name__} has no fast "
            "form: give the SentencePiece .model file itself"
        )
    if tokenizer.eos_token_id is None:
        raise TokenizerError(f"tokenizer.source: {source} has no end-of-text token (eos_token)")
    theirs, pad_id = tokenizer.backend_tokenizer, tokenizer.pad_token_id
    save_loaded(tokenizer, folder)
    theirs.encode_special_tokens = True
    check_in_transformers(folder, lambda text: theirs.encode(text).ids, [])
    return {
        "model_type": "tokenizers",
        "vocab_size": max(tokenizer.get_vocab().values()) + 1,  # some ids may be unused
        "eos_id": tokenizer.eos_token_id,
        "pad_id": tokenizer.eos_token_id if pad_id is None else pad_id,
        **loaded,
    }


def _require_special_tokens(config: TokenizerConfig, folder: Path) -> None:
    if config.special_tokens:
        missing = set(config.special_tokens) - set(open_in_transformers(folder).all_special_tokens)
        if missing:
            raise TokenizerError(
                f"tokenizer.special_tokens: {', '.join(sorted(missing))} is not a control token of {config.source}, "
                "and a loaded tokenizer gets no new ones. Train a tokenizer, or leave special_tokens empty"
            )
