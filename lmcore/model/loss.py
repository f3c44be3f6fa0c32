"""Cross-entropy of a linear layer's outputs, computed in chunks of logits.

With 50,000 pieces the logits are by far the largest tensor in a small model's step, and a step needs several copies.
Here they are computed for one chunk of tokens at a time. Their gradient depends only on them, so the forward pass also
computes the gradients of hidden states and weight. The backward pass scales these gradients (as in Liger Kernel, arXiv
2410.10989, but with the weight's gradient summed in fp32). No logits are computed twice, so a step needs the same
matrix products as with full logits.

Shapes: N tokens, n tokens of a chunk, C numbers in a hidden state, V pieces in the vocabulary.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional

from lmcore.dataset.stream import IGNORED_LABEL

_HEADROOM = {torch.float16: 64.0}
"""Divisor for sums over a chunk: a frequent piece's gradient can exceed 65,504, the maximum of fp16."""

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


def cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """The sum of nats over labels other than -100, in fp32 for logits of any type."""
    return functional.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="sum")


def token_cross_entropy(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """The nats of each label, 0 for -100, in fp32 for logits of any type."""
    return functional.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction="none")


def linear_cross_entropy(
    hidden_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    chunk_tokens: int,
) -> torch.Tensor:
    """``cross_entropy`` of hidden states times a weight, plus a bias if there is one.

    The logits of ``chunk_tokens`` tokens are in memory at once; 0: of all tokens. Under autocast the matrix products
    use low precision and the softmax fp32. Gradients are computed for tensors that require them, for one backward pass.
    """
    if not chunk_tokens:
        return cross_entropy(functional.linear(hidden_NC, weight_VC, bias_V), labels_N)
    parts: Parts = (hidden_NC, weight_VC, bias_V)
    wanted = tuple(torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts)
    apply: Any = _ChunkedCrossEntropy.apply
    nats: torch.Tensor = apply(*parts, labels_N, chunk_tokens, wanted)
    return nats


@torch.no_grad()
def token_nats(
    hidden_NC: torch.Tensor,
    weight_VC: torch.Tensor,
    bias_V: torch.Tensor | None,
    labels_N: torch.Tensor,
    chunk_tokens: int,
) -> torch.Tensor:
    """The nats of each label, whose sum is ``linear_cross_entropy``; 0 for -100, in fp32, without gradients."""
    hidden_NC, weight_VC, bias_V = _for_matmul((hidden_NC, weight_VC, bias_V))
    chunks = zip(torch.split(hidden_NC, chunk_tokens), torch.split(labels_N, chunk_tokens), strict=True)
    return torch.cat([token_cross_entropy(functional.linear(h_nC, weight_VC, bias_V), y_n) for h_nC, y_n in chunks])


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_NC: torch.Tensor,
        weight_VC: torch.Tensor,
        bias_V: torch.Tensor | None,
        labels_N: torch.Tensor,
        chunk_tokens: int,
        wanted: tuple[bool, bool, bool],
    ) -> torch.Tensor:
        parts: Parts = (hidden_NC, weight_VC, bias_V)
        gradients = [
            torch.zeros_like(part, dtype=torch.float32) if part is not None and is_wanted else None
            for part, is_wanted in zip(parts, wanted, strict=True)
        ]
        low = _for_matmul(parts)
        nats = torch.zeros((), dtype=torch.float32, device=hidden_NC.device)
        for start in range(0, len(labels_N), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            chunk: Parts = (low[0][rows], *low[1:])
            chunk_nats, error_nV = _nats_and_error(chunk, labels_N[rows])
            nats += chunk_nats
            if any(wanted):
                _add_gradients(gradients, chunk, error_nV, rows)
        ctx.save_for_backward(*gradients)
        ctx.dtypes = [None if part is None else part.dtype for part in parts]
        return nats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        scaled = (None if each is None else (each * scale).to(dtype) for each, dtype in pairs)
        return (*scaled, None, None, None)


def _for_matmul(parts: Parts) -> Parts:
    """The tensors in autocast's type for matrix products; without autocast in that of the hidden states."""
    kind, dtype = parts[0].device.type, parts[0].dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    hidden_NC, weight_VC, bias_V = parts
    return hidden_NC.to(dtype), weight_VC.to(dtype), None if bias_V is None else bias_V.to(dtype)


def _nats_and_error(chunk: Parts, labels_n: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum of nats of a chunk, and its derivative by the logits: softmax(logits) - one_hot(label), (n, V)."""
    log_p_nV = functional.log_softmax(functional.linear(*chunk), dim=-1, dtype=torch.float32)
    is_kept_n = labels_n != IGNORED_LABEL
    # Indexing, since scatter_add_ is not deterministic on GPUs.
    places = torch.arange(len(labels_n), device=labels_n.device), labels_n.where(is_kept_n, 0)
    nats = -log_p_nV[places].where(is_kept_n, 0).sum()
    error_nV = log_p_nV.exp_()
    error_nV[places] -= 1
    return nats, error_nV.mul_(is_kept_n[:, None])


def _add_gradients(gradients: list[torch.Tensor | None], chunk: Parts, error_nV: torch.Tensor, rows: slice) -> None:
    """Add the chunk's part to the gradients of hidden states (its rows), weight and bias."""
    hidden_nC, weight_VC, _ = chunk
    low_error_nV, headroom = error_nV.to(hidden_nC.dtype), _HEADROOM.get(hidden_nC.dtype, 1.0)
    of_hidden_NC, of_weight_VC, of_bias_V = gradients
    if of_hidden_NC is not None:
        of_hidden_NC[rows] = low_error_nV @ weight_VC
    if of_weight_VC is not None:
        of_weight_VC.add_(low_error_nV.T @ (hidden_nC / headroom), alpha=headroom)
    if of_bias_V is not None:
        of_bias_V += error_nV.sum(0)
