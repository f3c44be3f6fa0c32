"""Floating-point operations of a training."""

from lmcore.settings.config import ModelConfig


def training_flops(parameters: float, layers: int, width: int, block_size: int) -> float:
    """Floating-point operations to train on one token: 6 N + 12 L C T (PaLM, arXiv 2204.02311, appendix B).

    N ``parameters`` that multiply, L ``layers``, C numbers in all queries of a token (``width``), T tokens of a block.
    Attention counts as if it saw the whole block, and activations that are computed twice count once.
    """
    return 6.0 * parameters + 12.0 * layers * width * block_size


def estimated_flops_per_token(model: ModelConfig, vocabulary: int, block_size: int) -> float:
    """``training_flops`` by the settings alone: without biases and norms."""
    width, is_gated = model.width, model.architecture != "gpt2"
    key_share = (model.kv_heads or model.heads) / model.heads
    mlp = (3 if is_gated else 2) * width * (model.mlp_width or (8 * width / 3 if is_gated else 4 * width))
    layer = (2 + 2 * key_share) * width**2 + mlp
    return training_flops(model.layers * layer + width * vocabulary, model.layers, width, block_size)
