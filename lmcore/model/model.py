"""The transformers model of a run with its initial weights, and its loss as a module.

Shapes: B rows, T tokens of a row, C numbers in a hidden state, V pieces in the vocabulary.
"""

import fnmatch
from inspect import signature
from typing import Any, Literal

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from lmcore.errors import ConfigError, RunError
from lmcore.model.attention import can_flex, causal_mask, document_mask, use_own_attention, uses_own_attention
from lmcore.model.loss import cross_entropy, linear_cross_entropy
from lmcore.runs.initial_model import InitialModel, in_transformers
from lmcore.runs.run import Run

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


# --- weights ---


def new_model(run: Run, resumes: bool = False) -> PreTrainedModel:
    """The run's model with its initial weights: random ones by train.seed, or those of train.init_from.

    With ``resumes`` a checkpoint replaces the weights later, so train.init_from is not read. Raises RunError when
    train.init_from has changed since the run began, ConfigError when the model does not support the settings.
    """
    torch.manual_seed(run.config.train.seed)
    model = _continued_model(run) if run.config.train.init_from and not resumes else blank_model(run)
    if run.config.train.gradient_checkpointing:
        _checkpoint_activations(model)
    return model


def _checkpoint_activations(model: PreTrainedModel) -> None:
    if not model.supports_gradient_checkpointing:
        raise ConfigError(f"train.gradient_checkpointing: {type(model).__name__} does not support it")
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable()
    else:  # its name before transformers 5.23
        model.gradient_checkpointing_enable()


def blank_model(run: Run) -> PreTrainedModel:
    """A model of the run's shape, whose weights are loaded later; train.init_from is not read."""
    model: PreTrainedModel = AutoModelForCausalLM.from_config(in_transformers(run.shape), dtype=torch.float32)
    return _fitted(model, run)


def _fitted(model: PreTrainedModel, run: Run) -> PreTrainedModel:
    """The model, prepared for the run's batches."""
    use_own_attention(model)
    embedding = model.get_input_embeddings()
    if getattr(embedding, "padding_idx", None) == run.tokenizer_info.eos_id:
        embedding.padding_idx = None  # otherwise the embedding of EOS has no gradient
    if run.config.dataset.document_masking and "position_ids" not in signature(model.forward).parameters:
        raise ConfigError(f"dataset.document_masking: {type(model).__name__} takes no position_ids")
    return model


def _continued_model(run: Run) -> PreTrainedModel:
    initial = InitialModel.find(run.config.train.init_from)
    if initial.fingerprint() != run.identity["first_weights"]:
        raise RunError(
            f"the weights of {initial.name} (train.init_from) have changed since the run began: start another run with "
            "the same command, and with another --run NAME if the run has a name"
        )
    initial.verify()
    if not initial.is_checkpoint:
        return _fitted(_opened(initial), run)
    model = blank_model(run)
    # Not strict: the file holds tied weights once, and no buffers.
    model.load_state_dict(load_file(initial.folder / "model.safetensors"), strict=False)
    return model


def _opened(initial: InitialModel) -> PreTrainedModel:
    """The model in a folder. Raises ConfigError when it lacks weights, or is not a causal language model."""
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            initial.folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (ValueError, OSError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"train.init_from: transformers cannot open a language model in {initial.folder}: {error}"
        ) from error
    missing = sorted({*found["missing_keys"], *found["mismatched_keys"]})
    if missing:
        raise ConfigError(
            f"train.init_from: {initial.folder} lacks {len(missing)} of the weights of {type(model).__name__}, such as "
            f"{', '.join(map(str, missing[:3]))}"
        )
    if sees_ahead(model):
        raise ConfigError(
            f"train.init_from: {type(model).__name__} in {initial.folder} is not causal: it sees later tokens"
        )
    opened: PreTrainedModel = model
    return opened


@torch.no_grad()
def sees_ahead(model: PreTrainedModel) -> bool:
    """True if the last token changes earlier logits, as in an encoder that was opened as a language model."""
    ids_BT = torch.arange(_few_tokens(model)).repeat(2, 1)
    ids_BT[1, -1] = 0  # a sequence of one token already ends with 0
    one_TV, other_TV = model.eval()(input_ids=ids_BT, use_cache=False).logits[:, :-1]
    model.train()
    return not torch.allclose(one_TV, other_TV, atol=1e-4)


def _few_tokens(model: PreTrainedModel) -> int:
    """Tokens for a test of the model: at most 8, within its vocabulary and positions."""
    shape = model.config.get_text_config()
    return int(min(8, shape.vocab_size, getattr(shape, "max_position_embeddings", None) or 8))


def freeze_all_but(model: PreTrainedModel, patterns: list[str]) -> None:
    """Freeze all parameters whose names match no pattern.

    Raises ConfigError when a pattern matches nothing, or there are no patterns.
    """
    names = [name for name, _ in model.named_parameters()]
    if not patterns:
        raise ConfigError("train.trainable is empty, so no parameter would be trained: give a pattern, or * for all")
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ConfigError(
                f"train.trainable: no parameter matches {pattern!r}; the first of {len(names)} names are "
                f"{', '.join(names[:4])}"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns))


# --- training ---


class NextTokenLoss(nn.Module):
    """A model and its loss, as one module for DDP, FSDP2 and torch.compile.

    For a model with a plain head, the logits of ``chunk_tokens`` tokens are in memory at once (loss.py). A model that
    scales or caps its logits computes all of them.
    """

    def __init__(self, model: PreTrainedModel, chunk_tokens: int) -> None:
        super().__init__()
        self.model = model
        self._chunk_tokens = chunk_tokens
        self._has_plain_head = bool(chunk_tokens) and has_plain_head(model)
        self._has_own_attention = uses_own_attention(model)
        self._can_flex = can_flex(model)

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
            inputs["attention_mask"] = self._mask(input_ids_BT, document_ids_BT)
        if not self._has_plain_head:
            return cross_entropy(self.model(**inputs).logits.flatten(0, 1), labels_BT.flatten())
        hidden_BTC = self.model.base_model(**inputs).last_hidden_state
        head = self.model.get_output_embeddings()
        labels_N = labels_BT.flatten()
        return linear_cross_entropy(hidden_BTC.flatten(0, 1), head.weight, head.bias, labels_N, self._chunk_tokens)

    def _mask(self, ids_BT: torch.Tensor, document_ids_BT: torch.Tensor | None) -> Any:
        if document_ids_BT is None:
            return causal_mask(ids_BT)
        return document_mask(document_ids_BT, flex=self._can_flex and ids_BT.is_cuda)


@torch.no_grad()
def has_plain_head(model: PreTrainedModel) -> bool:
    """True if the logits are exactly the output embedding times the base model's last hidden states.

    The test runs a few tokens. The head must receive these states, and its output, replaced by large numbers so that a
    cap has an effect, must be equal to the logits.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or model.base_model is model:
        return False
    ids_BT = torch.arange(_few_tokens(model), device=model.device)[None]
    given: list[torch.Tensor] = []
    logits_BTV = torch.linspace(-1e4, 1e4, ids_BT.numel() * head.out_features, device=model.device)
    logits_BTV = logits_BTV.view(*ids_BT.shape, head.out_features)

    def replace(_: nn.Module, arguments: tuple[torch.Tensor], __: torch.Tensor) -> torch.Tensor:
        given.append(arguments[0])
        return logits_BTV

    was_training, hook = model.training, head.register_forward_hook(replace)
    model.eval()
    try:
        found_BTV = model(input_ids=ids_BT, use_cache=False).logits
        hidden_BTC = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    finally:
        hook.remove()
        model.train(was_training)
    return len(given) == 1 and torch.equal(given[0], hidden_BTC) and torch.equal(found_BTV, logits_BTV)


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


# --- counts ---


def parameter_count(model: PreTrainedModel, trainable_only: bool = False) -> int:
    """The number of parameters. Tied weights count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)


def flops_per_token(model: PreTrainedModel, block_size: int) -> float:
    """Floating-point operations to train on one token: 6 N + 12 L C T (PaLM, arXiv 2204.02311, appendix B).

    N parameters that multiply, L layers, C numbers in all queries of a token, T tokens of a block. Tables that are
    looked up, of positions and untied input embeddings, do not multiply. Attention counts as if it saw the whole block,
    and activations that are computed twice count once.
    """
    shape: Any = model.config.get_text_config()
    head = model.get_output_embeddings()
    tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
    looked_up = sum(weight.numel() for weight in tables if head is None or weight is not head.weight)
    head_size = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
    width: int = head_size * shape.num_attention_heads
    return 6.0 * (parameter_count(model) - looked_up) + 12.0 * int(shape.num_hidden_layers) * width * block_size
