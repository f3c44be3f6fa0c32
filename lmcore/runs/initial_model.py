"""The initial model of a run: a shape from the settings, or the shape and weights of another model.

The other model is a checkpoint of a run, an export, any folder that transformers' ``AutoModelForCausalLM`` opens, or a
name on the hub. Only ``in_transformers`` imports transformers.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self

from lmcore.errors import ConfigError, TokenizerError
from lmcore.runs.run import Run, Shape
from lmcore.settings.config import RunConfig
from lmcore.settings.section import differences, fingerprint
from lmcore.store.artifacts import MANIFEST, read_manifest, verify_artifact
from lmcore.store.files import hash_file
from lmcore.store.hub import resolve
from lmcore.tokenizer.tokenizer import TOKENIZER_FILES, TokenizerInfo
from lmcore.tokenizer.transformers_view import open_in_transformers

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
        "intermediate_size": model.mlp_width or -(-(model.width * 8 // 3) // 16) * 16,
        "attention_dropout": model.dropout,
    }


def control_ids(tokenizer: TokenizerInfo) -> dict[str, int | None]:
    """The ids of the tokenizer's control tokens, as a shape names them.

    A document begins after the EOS of the one before, so EOS is also the model's BOS. If EOS is also the padding, no
    padding is named, because transformers keeps the embedding of a padding token at zero.
    """
    pad_id = None if tokenizer.pad_id == tokenizer.eos_id else tokenizer.pad_id
    return {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id, "pad_token_id": pad_id}


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
    """The absolute path of its folder, or its name on the hub."""
    folder: Path
    manifest: dict[str, Any]
    """Empty for a folder that was not made here."""
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
        folder = resolve(name, "train.init_from", "model", (*MODEL_FILES, *TOKENIZER_FILES), ConfigError).absolute()
        name = str(folder) if Path(name).expanduser().exists() else name
        manifest = read_manifest(folder) if (folder / MANIFEST).exists() else {}
        if manifest.get("kind") == "checkpoint":
            run = Run.open(folder.parents[1])
            return cls(name, folder, manifest, run.shape, run.tokenizer_folder, run.tokenizer_folder.name)
        shape = _read_shape(folder)
        if not list(folder.glob("model*.safetensors")):
            raise ConfigError(
                f"train.init_from: {folder} holds no model*.safetensors. Pickled weights are never read: let "
                "transformers save them as safetensors"
            )
        return cls(name, folder, manifest, shape, folder, manifest.get("identity", {}).get("tokenizer_id", ""))

    @property
    def is_checkpoint(self) -> bool:
        return self.tokenizer_folder != self.folder

    def fingerprint(self) -> str:
        """Fingerprint of the content. Weights are read only if no manifest has their hashes."""
        known = {name: file["blake3"] for name, file in self.manifest.get("files", {}).items()}
        weights = self.folder.glob("model*.safetensors")
        return fingerprint(self.shape, {path.name: known.get(path.name) or _hash(path) for path in weights})

    def verify(self) -> None:
        """Raise StoreError when the folder has a manifest and differs from it."""
        if self.manifest:
            verify_artifact(self.folder)

    def optimizer_folder(self) -> Path:
        """The folder, which has the optimizer's state to load. Raises ConfigError when it has none."""
        if not (self.folder / "optimizer.safetensors").exists():
            raise ConfigError(
                f"train.init_optimizer: {self.folder} holds no optimizer's state, which only a run's checkpoints do "
                "(runs/NAME/checkpoints/step-...)"
            )
        return self.folder

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
            self.optimizer_folder()

    def _compare_vocabularies(self, tokenizer: TokenizerInfo) -> None:
        differing = list(differences(_vocabulary(self.tokenizer_folder), _vocabulary(tokenizer.folder)))
        if differing:
            rows = [f"  {key}: {theirs!r} there, {ours!r} here" for key, theirs, ours in differing[:_SHOWN]]
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
    pieces = {f"id {index}": piece.replace("\u2581", " ") for piece, index in tokenizer.get_vocab().items()}
    return {"end of text": tokenizer.eos_token_id, **pieces}


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
    about = path.stat()
    return _hash_of_version(path, about.st_size, about.st_mtime_ns, about.st_ino)


@cache  # a run is named several times in a process
def _hash_of_version(path: Path, *version: int) -> str:
    return hash_file(path)
