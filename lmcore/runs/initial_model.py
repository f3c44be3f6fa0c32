"""The initial model of a run: a shape from the settings, or the shape and weights of another model.

A shape is the content of transformers' config.json. The other model is a checkpoint of a run, an export, any folder
that transformers' ``AutoModelForCausalLM`` opens, or a name on the hub. Only ``in_transformers`` imports transformers.
"""

import json
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from lmcore.errors import ConfigError, TokenizerError
from lmcore.runs.run_record import read_record
from lmcore.settings.config import RunConfig
from lmcore.settings.section import fingerprint
from lmcore.store.artifacts import MANIFEST, read_manifest, verify_artifact
from lmcore.store.files import hash_file
from lmcore.store.hub import resolve
from lmcore.tokenizer.tokenizer import TOKENIZER_FILES, TokenizerInfo
from lmcore.tokenizer.transformers_view import open_in_transformers

Shape = dict[str, Any]

MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
_NO_SHAPE = ("transformers_version", "_name_or_path")
"""Fields of config.json that describe the program that wrote it."""
_SHOWN = 4
"""Most differences in an error message."""


def shape_of_settings(config: RunConfig, tokenizer: TokenizerInfo) -> Shape:
    """The shape that the settings ask for. The longest context is one block."""
    model = config.model
    shape: Shape = {
        "model_type": model.architecture,
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": config.dataset.block_size,
        "num_hidden_layers": model.layers,
        "hidden_size": model.width,
        "num_attention_heads": model.heads,
        "tie_word_embeddings": model.tie_embeddings,
        "use_cache": True,
        **control_ids(tokenizer),
    }
    if model.architecture == "gpt2":
        dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), model.dropout)
        return shape | {"n_inner": model.mlp_width or None} | dropout
    return shape | {
        "num_key_value_heads": model.kv_heads or model.heads,
        "head_dim": model.width // model.heads,
        "intermediate_size": model.mlp_width or _round_up(model.width * 8 // 3, 16),
        "attention_dropout": model.dropout,
    }


_DIMENSIONS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "wide": ("hidden_size", "n_embd", "d_model"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
}
"""The names of a dimension in config.json, by family of models."""


def describe_shape(shape: Shape) -> str:
    """A shape as text, such as "gpt2, 4 layers, 192 wide, 6 heads"."""
    text = shape.get("text_config", shape)
    figures = {word: [text[name] for name in names if name in text] for word, names in _DIMENSIONS.items()}
    return ", ".join([str(shape["model_type"]), *(f"{found[0]} {word}" for word, found in figures.items() if found)])


def control_ids(tokenizer: TokenizerInfo) -> dict[str, int | None]:
    """The ids of the tokenizer's control tokens, as a shape names them.

    A document begins after the EOS of the one before, so EOS is also the model's BOS. If EOS is also the padding, no
    padding is named, because transformers keeps the embedding of a padding token at zero.
    """
    pad_id = None if tokenizer.pad_id == tokenizer.eos_id else tokenizer.pad_id
    return {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": pad_id}


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def in_transformers(shape: Shape) -> Any:
    """The transformers configuration of a shape. Raises ConfigError when transformers does not know its model type."""
    from transformers import CONFIG_MAPPING, __version__

    name = shape["model_type"]
    if name not in CONFIG_MAPPING:
        raise ConfigError(f"train.init_from: transformers {__version__} knows no model type {name!r}")
    return CONFIG_MAPPING[name].from_dict(shape)


@dataclass(frozen=True)
class InitialModel:
    """A model whose weights a run starts from."""

    name: str
    """Its name in the settings."""
    folder: Path
    shape: Shape
    tokenizer_folder: Path
    tokenizer_id: str
    """Id in the store; empty for a tokenizer from elsewhere."""

    @classmethod
    def find(cls, name: str) -> Self:
        """The model that ``train.init_from`` names.

        Raises ConfigError when it is not a model, StoreError when it is damaged, ConnectionError when the hub does not
        answer.
        """
        folder = resolve(name, "train.init_from", "model", (*MODEL_FILES, *TOKENIZER_FILES), ConfigError)
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
        if manifest.get("kind") == "checkpoint":
            run = folder.absolute().parents[1]
            record = read_record(run)
            tokenizer_id = str(record["identity"]["tokenizer_id"])
            return cls(name, folder, record["shape"], run.parents[1] / "tokenizers" / tokenizer_id, tokenizer_id)
        shape = _read_shape(folder)
        if not list(folder.glob("model*.safetensors")):
            raise ConfigError(
                f"train.init_from: {folder} holds no model*.safetensors. Pickled weights are never read: let "
                "transformers save them as safetensors"
            )
        tokenizer_id = manifest.get("identity", {}).get("tokenizer_id", "")
        return cls(name, folder, shape, folder, tokenizer_id)

    @property
    def is_checkpoint(self) -> bool:
        return self.tokenizer_folder != self.folder

    def fingerprint(self) -> str:
        """Fingerprint of the content. Weights are read only if no manifest has their hashes."""
        files = read_manifest(self.folder)["files"] if (self.folder / MANIFEST).exists() else {}
        hashes = {
            path.name: files[path.name]["blake3"] if path.name in files else _hash(path)
            for path in self.folder.glob("model*.safetensors")
        }
        return fingerprint(self.shape, hashes)

    def verify(self) -> None:
        """Raise StoreError when the folder has a manifest and differs from it."""
        if (self.folder / MANIFEST).exists():
            verify_artifact(self.folder)

    def check(self, config: RunConfig, tokenizer: TokenizerInfo) -> None:
        """Raise ConfigError or TokenizerError unless a run with these settings can start from this model."""
        shape = in_transformers(self.shape).get_text_config()
        positions = getattr(shape, "max_position_embeddings", None)
        if positions is not None and config.dataset.block_size > positions:
            raise ConfigError(
                f"dataset.block_size is {config.dataset.block_size}, and {self.name} (train.init_from) has "
                f"{positions} positions: lower it to {positions} at most"
            )
        if self.tokenizer_id != tokenizer.id:
            self._compare_vocabularies(tokenizer)
        if shape.vocab_size < tokenizer.vocab_size:
            raise TokenizerError(
                f"{self.name} (train.init_from) has embeddings for {shape.vocab_size:,} ids, this run's tokenizer "
                f"{tokenizer.id} has {tokenizer.vocab_size:,}"
            )
        if config.train.init_optimizer:
            init_checkpoint(self.name)

    def _compare_vocabularies(self, tokenizer: TokenizerInfo) -> None:
        theirs, ours = _vocabulary(self.tokenizer_folder), _vocabulary(tokenizer.folder)
        differing = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
        if differing:
            rows = [f"  {key}: {theirs.get(key)!r} there, {ours.get(key)!r} here" for key in differing[:_SHOWN]]
            raise TokenizerError(
                f"{self.name} (train.init_from) has another tokenizer than this run, so its ids mean other text:\n"
                f"  tokenizer: {self.tokenizer_id or self.tokenizer_folder} there, {tokenizer.id} here\n"
                + "\n".join(rows)
                + f"\n{len(differing):,} differences in all. Give tokenizer.source = {str(self.tokenizer_folder)!r}, "
                "or begin with new weights"
            )


def _vocabulary(folder: Path) -> dict[str, Any]:
    """The id of EOS, and the piece of every id, with U+2581 as a space."""
    tokenizer = open_in_transformers(folder)
    pieces = sorted((index, piece.replace("\u2581", " ")) for piece, index in tokenizer.get_vocab().items())
    return {"end of text": tokenizer.eos_token_id, **{f"id {index}": piece for index, piece in pieces}}


def _read_shape(folder: Path) -> Shape:
    try:
        shape: Shape = json.loads((folder / "config.json").read_bytes())
        shape["model_type"]
    except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError):
        raise ConfigError(
            f"train.init_from: {folder} holds no model: no config.json there names a model_type. Give a checkpoint "
            "(runs/NAME/checkpoints/step-...), an export (runs/NAME/model), another transformers folder, or a hub name"
        ) from None
    return {key: value for key, value in shape.items() if key not in _NO_SHAPE}


def _hash(path: Path) -> str:
    about = os.stat(path)
    return _hash_of_version(path, about.st_size, about.st_mtime_ns, about.st_ino)


@cache  # a run is named several times in a process
def _hash_of_version(path: Path, *version: int) -> str:
    return hash_file(path)


def init_fingerprint(init_from: str) -> str:
    """Fingerprint of the weights that a run starts from; empty for new weights. Raises as ``InitialModel.find``."""
    return InitialModel.find(init_from).fingerprint() if init_from else ""


def init_checkpoint(init_from: str) -> Path:
    """The folder with the optimizer's state to load. Raises ConfigError when there is none."""
    folder = InitialModel.find(init_from).folder
    if not (folder / "optimizer.safetensors").exists():
        raise ConfigError(
            f"train.init_optimizer: {folder} holds no optimizer's state, which only a run's checkpoints do "
            "(runs/NAME/checkpoints/step-...)"
        )
    return folder
