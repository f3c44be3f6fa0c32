"""Settings to a transformers causal language model with new weights."""

import fnmatch
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lmcore.errors import ConfigError
from lmcore.run import Run

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


def new_model(run: Run) -> PreTrainedModel:
    """The run's model with weights drawn from its seed; its longest context is one block.

    A document begins after the EOS of the one before, so EOS is the model's BOS as well.
    """
    config, tokenizer = run.config.model, run.tokenizer_info
    gated = config.architecture != "gpt2"
    fields: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size,
        "max_position_embeddings": run.config.dataset.block_size,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": tokenizer.eos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
        "use_cache": True,
    }
    if gated:
        fields |= {
            "num_key_value_heads": config.kv_heads or config.heads,
            "head_dim": config.width // config.heads,
            "intermediate_size": config.mlp_width or _round_up(config.width * 8 // 3, 16),
            "attention_dropout": config.dropout,
        }
    else:
        fields |= {
            "n_inner": config.mlp_width or None,
            "resid_pdrop": config.dropout,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
        }
    torch.manual_seed(run.config.train.seed)
    settings = AutoConfig.for_model(config.architecture, **fields)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(settings, attn_implementation="sdpa", dtype=torch.float32)
    return model


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


def freeze_all_but(model: PreTrainedModel, patterns: list[str]) -> None:
    """Let only the parameters whose names match a pattern be updated.

    Raises ConfigError when a pattern matches nothing, or there is none.
    """
    names = [name for name, _ in model.named_parameters()]
    if not patterns:
        raise ConfigError("train.trainable is empty, so nothing would be trained: give a pattern, or * for everything")
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"train.trainable: no parameter is named like {pattern!r}; the first of {len(names)} are "
                f"{', '.join(names[:4])}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


def parameter_count(model: PreTrainedModel, trainable_only: bool = False) -> int:
    """Numbers in all weights; tied weights count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
