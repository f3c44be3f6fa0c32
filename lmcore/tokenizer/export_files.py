"""An exported folder for other programs than the transformers that wrote it: older ones, vLLM, CTranslate2, llama.cpp.

transformers 5 writes names that 4.57 does not know, and reads the older ones too, so the older ones stand in the files:
    tokenizer_class     PreTrainedTokenizerFast, and of a SentencePiece model that no tokenizer.json can say
                        BertGenerationTokenizer, the one class that gives SentencePiece's own ids in both
    special tokens      additional_special_tokens
    rope_theta, rope_scaling, n_ctx   beside what transformers 5 calls them

llama.cpp's converter reads tokenizer.model, and reports no error where it misreads it. So the file is written only
where it is read correctly: for the architecture llama (for others the converter puts a space before every text) and a
BPE model, with U+2581 for a space. Elsewhere the file is called spiece.model: the converter does not find it and fails.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from lmcore.store.artifacts import MANIFEST
from lmcore.store.files import json_bytes
from lmcore.tokenizer.sentencepiece_model import (
    MODEL_FILE,
    SPIECE_FILE,
    has_exact_json,
    normalized_by,
    read_model,
    with_marked_spaces,
)

NORMALIZATION = "normalization"
"""In tokenizer_config.json: the Unicode normalization of the text that the model was trained on."""

_CONFIG = "tokenizer_config.json"
_VIEW = "tokenizer.json"

Settings = dict[str, Any]


def write_tokenizer(source: Path, folder: Path, longest: int, normalize: str) -> None:
    """Copy a tokenizer of the store beside the model's config.json.

    The copy normalizes its text, and knows that the model reads ``longest`` tokens.
    """
    for file in source.iterdir():
        if file.name not in (MANIFEST, MODEL_FILE):
            shutil.copy(file, folder / file.name)
    settings = _older_names(_read(folder / _CONFIG)) | {"model_max_length": longest}
    if normalize:
        settings[NORMALIZATION] = normalize
    if (source / MODEL_FILE).exists():
        _write_model(read_model(source / MODEL_FILE), folder, normalize)
    if (folder / _VIEW).exists():
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False}
        if normalize:
            (folder / _VIEW).write_bytes(json_bytes(_normalizing(_read(folder / _VIEW), normalize)))
    else:
        settings = _of_sentencepiece(settings)
    (folder / _CONFIG).write_bytes(json_bytes(settings))


def _write_model(proto: Any, folder: Path, normalize: str) -> None:
    marked = with_marked_spaces(proto)
    is_read = has_exact_json(proto) and any(piece.piece == "\u2581" for piece in marked.pieces)
    if is_read and _read(folder / "config.json")["model_type"] == "llama":
        (folder / MODEL_FILE).write_bytes(marked.SerializeToString())
    else:
        (folder / SPIECE_FILE).write_bytes(normalized_by(proto, normalize).SerializeToString())


def write_config(path: Path) -> None:
    """Let a config.json say in the older names too what transformers 5 says in its own."""
    config = _read(path)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # else it has one for every kind of layer
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        config["rope_theta"] = rope["rope_theta"]
        config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else scaling
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    path.write_bytes(json_bytes(config))


def trained_on_form(folder: Path) -> str:
    """The Unicode normalization of the text that the model in a folder was trained on; empty if none is said."""
    path = folder / _CONFIG
    form = _read(path).get(NORMALIZATION, "") if path.exists() else ""
    return form if form in ("NFC", "NFKC") else ""


def _older_names(settings: Settings) -> Settings:
    """transformers 4 fails on a list of extra_special_tokens, even an empty one."""
    extra = settings.get("extra_special_tokens")
    kept = {name: value for name, value in settings.items() if name not in ("extra_special_tokens", "backend")}
    return kept | ({"additional_special_tokens": extra} if extra else {})


def _of_sentencepiece(settings: Settings) -> Settings:
    """Every role gets a token of the model; for a missing one the class would add a token to the vocabulary."""
    end = settings["eos_token"]
    roles = {role: settings.get(role, end) for role in ("bos_token", "unk_token", "pad_token", "sep_token")}
    return settings | roles | {"tokenizer_class": "BertGenerationTokenizer"}


def _normalizing(view: Settings, form: str) -> Settings:
    """The tokenizer.json with a Unicode normalization before everything else."""
    steps = [{"type": form}, *([view["normalizer"]] if view["normalizer"] else [])]
    return view | {"normalizer": {"type": "Sequence", "normalizers": steps} if len(steps) > 1 else steps[0]}


def _read(path: Path) -> Settings:
    content: Settings = json.loads(path.read_bytes())
    return content
