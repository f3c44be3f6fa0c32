"""Attention for training: causal without a mask, or within documents.

transformers builds a (B, 1, T, T) mask for compiled models, which disables SDPA's flash kernel (arXiv 2307.08691). For
other models it waits for the GPU to find out whether a mask is needed. It passes a mask of four dimensions on
unchanged, so this module builds the masks, and ``attention``, registered under ``NAME``, interprets them. Any other
mask (padding, with a cache, none) is handled by transformers' "sdpa". The name is never saved, so an export opens with
transformers alone.

Shapes: B rows, T tokens, H query heads, G key heads, D numbers of a head.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "lm"

_FAMILIES = ("gpt2", "llama", "qwen3")
"""Model types with plain attention: one mask for all layers, and scores that are only scaled."""


def attention(
    module: torch.nn.Module,
    query_BHTD: torch.Tensor,
    key_BGTD: torch.Tensor,
    value_BGTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The output of attention, (B, T, H, D), and None; transformers' interface of an attention function."""
    mask = attention_mask if attention_mask is None or attention_mask.numel() else None
    output: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query_BHTD, key_BGTD, value_BGTD, mask, **settings
    )
    return output


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_own_attention(model: PreTrainedModel) -> None:
    """Set ``attention`` on a model whose attention is plain. Other models stay unchanged."""
    layer_types = getattr(model.config, "layer_types", None) or ()
    if model.config.model_type in _FAMILIES and "sliding_attention" not in layer_types:
        model.set_attn_implementation(NAME)


def uses_own_attention(model: PreTrainedModel) -> bool:
    """Whether the model computes attention with the function of this file."""
    return bool(model.config._attn_implementation == NAME)


def training_mask(ids_BT: torch.Tensor, document_ids_BT: torch.Tensor | None = None) -> torch.Tensor:
    """A mask for ``attention``: empty, which means causal, or (B, 1, T, T), True where a token attends.

    With ``document_ids_BT`` tokens attend only to their own document.
    """
    if document_ids_BT is None:
        return ids_BT.new_empty((0, 0, 0, 0), dtype=torch.bool)
    is_same_BTT = document_ids_BT[:, :, None] == document_ids_BT[:, None, :]
    return is_same_BTT.tril()[:, None]
