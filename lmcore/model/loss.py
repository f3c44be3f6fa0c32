"""The loss of a model, with logits in chunks, and the module that computes it.

With 50,000 pieces the logits are by far the largest tensor in a small model's step, and a step needs several copies.
Here they are computed for one chunk of tokens at a time. Their gradient depends only on them, so the forward pass also
computes the gradients of hidden states and weight. The backward pass scales these gradients (as in Liger Kernel, arXiv
2410.10989, but with the weight's gradient summed in fp32). No logits are computed twice, so a step needs the same
matrix products as with full logits.

Shapes: B rows, T tokens of a row, N tokens, n tokens of a chunk, C numbers in a hidden state, V pieces in the
vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

from lmcore.dataset.stream import IGNORED_LABEL
from lmcore.errors import ConfigError
from lmcore.model.attention import training_mask, uses_own_attention

_HEADROOM = {torch.float16: 64.0}
"""Divisor for sums over a chunk: a frequent piece's gradient can exceed 65,504, the maximum of fp16."""

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Hidden states (N, C), weight (V, C) and bias (V) of the output embedding."""


class NextTokenLoss(nn.Module):
    """A model and its loss, as one module for DDP, FSDP2 and torch.compile.

    For a model with a plain head, the logits of ``chunk_tokens`` tokens are in memory at once; 0: of all tokens. A
    model that scales or caps its logits computes all of them.
    """

    def __init__(self, model: PreTrainedModel, chunk_tokens: int = 2048) -> None:
        super().__init__()
        self.model = model
        self._chunk_tokens = chunk_tokens
        self._has_plain_head = bool(chunk_tokens) and has_plain_head(model)
        self._has_own_attention = uses_own_attention(model)

    def forward(
        self,
        input_ids_BT: torch.Tensor,
        labels_BT: torch.Tensor,
        position_ids_BT: torch.Tensor | None = None,
        document_ids_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The sum of nats over labels other than -100: a scalar in fp32.

        The labels are already one token ahead of the inputs. With ``document_ids_BT``, and positions that restart in
        each document, tokens attend only to their own document.
        """
        inputs: dict[str, Any] = {"input_ids": input_ids_BT, "use_cache": False}
        if position_ids_BT is not None:
            inputs["position_ids"] = position_ids_BT
        if self._has_own_attention:
            inputs["attention_mask"] = training_mask(input_ids_BT, document_ids_BT)
        labels_N = labels_BT.flatten()
        if not self._has_plain_head:
            return cross_entropy(self.model(**inputs).logits.flatten(0, 1), labels_N)
        return linear_cross_entropy(self._parts(inputs), labels_N, self._chunk_tokens)

    def token_nats(self, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> torch.Tensor:
        """The nats of each label without dropout, (B, T), 0 for -100, in fp32."""
        inputs, labels_N = {"input_ids": input_ids_BT, "use_cache": False}, labels_BT.flatten()
        with inference(self.model):
            if self._has_plain_head:
                nats_N = token_nats(self._parts(inputs), labels_N, self._chunk_tokens)
            else:
                nats_N = cross_entropy(self.model(**inputs).logits.flatten(0, 1), labels_N, "none")
        return nats_N.view(labels_BT.shape)

    def _parts(self, inputs: dict[str, Any]) -> Parts:
        head = self.model.get_output_embeddings()
        return self.model.base_model(**inputs).last_hidden_state.flatten(0, 1), head.weight, head.bias


def transformer_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """The model's transformer blocks. Raises ConfigError when no list of modules has num_hidden_layers entries."""
    count = model.config.get_text_config().num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return list(module)
    raise ConfigError(f"{type(model).__name__} has no list of its {count} blocks: use train.compile off or model")


def compile_model(module: NextTokenLoss, how: Literal["auto", "off", "blocks", "model"], device: torch.device) -> None:
    """Compile the whole module, or each block of the model, in place; names of parameters do not change.

    "auto" compiles the whole module on cuda, and nothing elsewhere. Equal blocks are compiled once.
    """
    if how == "model" or (how == "auto" and device.type == "cuda"):
        module.compile()
    elif how == "blocks":
        for block in transformer_blocks(module.model):
            block.compile()


@contextmanager
def inference(model: nn.Module) -> Iterator[None]:
    """While the body runs, the model is in evaluation mode and computes no gradients."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def has_plain_head(model: PreTrainedModel) -> bool:
    """True if the logits are exactly the output embedding times the base model's last hidden states.

    The test runs a few tokens. The head must receive these states, and its output, replaced by large numbers so that a
    cap has an effect, must be equal to the logits.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or model.base_model is model:
        return False
    ids_BT, given = _few_tokens(model)[None], list[torch.Tensor]()
    logits_V = torch.linspace(-1e4, 1e4, ids_BT.numel() * head.out_features, device=model.device)
    logits_BTV = logits_V.view(*ids_BT.shape, head.out_features)

    def replace(_: nn.Module, arguments: tuple[torch.Tensor], __: torch.Tensor) -> torch.Tensor:
        given.append(arguments[0])
        return logits_BTV

    with inference(model):
        hook = head.register_forward_hook(replace)
        try:
            found_BTV = model(input_ids=ids_BT, use_cache=False).logits
        finally:
            hook.remove()
        hidden_BTC = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    return len(given) == 1 and torch.equal(given[0], hidden_BTC) and torch.equal(found_BTV, logits_BTV)


def sees_ahead(model: PreTrainedModel) -> bool:
    """True if the last token changes earlier logits, as in an encoder that was opened as a language model."""
    ids_BT = _few_tokens(model).repeat(2, 1)
    ids_BT[1, -1] = 0  # a sequence of one token already ends with 0
    with inference(model):
        one_TV, other_TV = model(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    return not torch.allclose(one_TV, other_TV, atol=1e-4)


def _few_tokens(model: PreTrainedModel) -> torch.Tensor:
    """Ids for a test of the model: at most 8, within its vocabulary and positions."""
    shape = model.config.get_text_config()
    count = min(8, shape.vocab_size, getattr(shape, "max_position_embeddings", None) or 8)
    return torch.arange(count, device=model.device)


def cross_entropy(
    logits_NV: torch.Tensor, labels_N: torch.Tensor, reduction: Literal["sum", "none"] = "sum"
) -> torch.Tensor:
    """The nats of labels, 0 for -100, or their sum; in fp32 for logits of any type."""
    return functional.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORED_LABEL, reduction=reduction)


def linear_cross_entropy(parts: Parts, labels_N: torch.Tensor, chunk_tokens: int) -> torch.Tensor:
    """``cross_entropy`` of hidden states times a weight, plus a bias if there is one.

    The logits of ``chunk_tokens`` tokens are in memory at once. Under autocast the matrix products use low precision
    and the softmax fp32. Gradients are computed for tensors that require them, for one backward pass.
    """
    wanted = tuple(torch.is_grad_enabled() and part is not None and part.requires_grad for part in parts)
    apply: Any = _ChunkedCrossEntropy.apply
    nats: torch.Tensor = apply(labels_N, chunk_tokens, wanted, *parts)
    return nats


@torch.no_grad()
def token_nats(parts: Parts, labels_N: torch.Tensor, chunk_tokens: int) -> torch.Tensor:
    """The nats of each label, whose sum is ``linear_cross_entropy``; 0 for -100, in fp32, without gradients."""
    hidden_NC, weight_VC, bias_V = _for_matmul(parts)
    chunks = zip(torch.split(hidden_NC, chunk_tokens), torch.split(labels_N, chunk_tokens), strict=True)
    return torch.cat([cross_entropy(functional.linear(h_nC, weight_VC, bias_V), y_n, "none") for h_nC, y_n in chunks])


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, labels_N: torch.Tensor, chunk_tokens: int, wanted: tuple[bool, ...], *parts: torch.Tensor | None
    ) -> torch.Tensor:
        gradients = [
            torch.zeros_like(part, dtype=torch.float32) if part is not None and is_wanted else None
            for part, is_wanted in zip(parts, wanted, strict=True)
        ]
        hidden_NC, weight_VC, bias_V = _for_matmul(parts)
        nats = torch.zeros((), dtype=torch.float32, device=hidden_NC.device)
        for start in range(0, len(labels_N), chunk_tokens):
            rows = slice(start, start + chunk_tokens)
            chunk: Parts = (hidden_NC[rows], weight_VC, bias_V)
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
        return None, None, None, *(None if each is None else (each * scale).to(dtype) for each, dtype in pairs)


def _for_matmul(parts: Any) -> Parts:
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
