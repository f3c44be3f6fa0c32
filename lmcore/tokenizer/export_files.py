"""Write an exported folder for other programs than the transformers that wrote it: older versions, vLLM, llama.cpp.

transformers 5 writes names that 4.57 does not know, and reads the older names. So the files contain the older ones:
    tokenizer_class     PreTrainedTokenizerFast; for a SentencePiece model without exact tokenizer.json
                        BertGenerationTokenizer, the only class that gives SentencePiece's ids in both versions
    special tokens      additional_special_tokens
    rope_theta, rope_scaling, n_ctx   in addition to the names of transformers 5

llama.cpp's converter reads tokenizer.model, and reports no error if it misreads it. So that file is written only where
the converter is correct: for the architecture llama (it puts a space before each text for others) and a BPE model, with
U+2581 for a space. Elsewhere the file is called spiece.model, so that the converter does not find it and fails.
"""

import shutil
from pathlib import Path
from typing import Any

from lmcore.store.artifacts import MANIFEST
from lmcore.store.json_files import json_bytes, read_object
from lmcore.tokenizer.sentencepiece_model import (
    MODEL_FILE,
    SPIECE_FILE,
    has_exact_json,
    normalized_by,
    read_model,
    with_marked_spaces,
)

NORMALIZATION = "normalization"
"""Key in tokenizer_config.json: the Unicode normalization of the training text."""
_CONFIG = "tokenizer_config.json"


def write_tokenizer(source: Path, folder: Path, longest: int, normalize: str) -> None:
    """Copy a tokenizer of the store beside the model's config.json.

    The copy normalizes its text, and knows that the model reads ``longest`` tokens.
    """
    for file in source.iterdir():
        if file.name not in (MANIFEST, MODEL_FILE):
            shutil.copy(file, folder / file.name)
    settings, view = read_object(folder / _CONFIG), folder / "tokenizer.json"
    settings.pop("backend", None)
    # transformers 4 fails on a list of extra_special_tokens, even an empty one.
    if extra := settings.pop("extra_special_tokens", None):
        settings["additional_special_tokens"] = extra
    settings["model_max_length"] = longest
    if normalize:
        settings[NORMALIZATION] = normalize
    if (source / MODEL_FILE).exists():
        _write_model(read_model(source / MODEL_FILE), folder, normalize)
    if view.exists():
        settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": False}
        if normalize:
            view.write_bytes(json_bytes(_normalizing(read_object(view), normalize)))
    else:
        # The class would add a token to the vocabulary for a role that has none.
        roles = ("bos_token", "unk_token", "pad_token", "sep_token")
        settings |= {role: settings.get(role, settings["eos_token"]) for role in roles}
        settings["tokenizer_class"] = "BertGenerationTokenizer"
    (folder / _CONFIG).write_bytes(json_bytes(settings))


def _write_model(proto: Any, folder: Path, normalize: str) -> None:
    marked = with_marked_spaces(proto)
    is_read = has_exact_json(proto) and any(piece.piece == "\u2581" for piece in marked.pieces)
    if is_read and read_object(folder / "config.json")["model_type"] == "llama":
        (folder / MODEL_FILE).write_bytes(marked.SerializeToString())
    else:
        (folder / SPIECE_FILE).write_bytes(normalized_by(proto, normalize).SerializeToString())


def _normalizing(view: dict[str, Any], form: str) -> dict[str, Any]:
    """The tokenizer.json with a Unicode normalization as its first step."""
    steps = [{"type": form}, *filter(None, [view["normalizer"]])]
    return view | {"normalizer": {"type": "Sequence", "normalizers": steps} if len(steps) > 1 else steps[0]}


def trained_on_form(folder: Path) -> str:
    """The Unicode normalization of the training text of the model in a folder; empty if none is stated."""
    form = read_object(folder / _CONFIG).get(NORMALIZATION) if (folder / _CONFIG).exists() else ""
    return form if form in ("NFC", "NFKC") else ""


def write_config(path: Path) -> None:
    """Add the older names to a config.json of transformers 5."""
    config = read_object(path)
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:  # else there is one entry for each kind of layer
        scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
        config["rope_theta"] = rope["rope_theta"]
        config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else scaling
        if "partial_rotary_factor" in rope:
            config["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if config["model_type"] == "gpt2":
        config["n_ctx"] = config["n_positions"]
    path.write_bytes(json_bytes(config))
