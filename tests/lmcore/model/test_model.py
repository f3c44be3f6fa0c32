"""Settings to a model: sizes, seeds, what is frozen; and the loss that training wraps, however it is computed."""

import math
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lmcore.dataset.loader import document_boundaries
from lmcore.errors import ConfigError
from lmcore.model.attention import uses_own_attention
from lmcore.model.loss import NextTokenLoss, compile_model, cross_entropy, has_plain_head, transformer_blocks
from lmcore.model.model import blank_model, flops_per_token, freeze_all_but, new_model, parameter_count
from lmcore.runs.initial_model import shape_of_settings
from tests.conftest import EOS, Prepared

ARCHITECTURES = ["gpt2", "llama", "qwen3"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_model_is_what_the_settings_say(prepared: Prepared, architecture: str) -> None:
    run = prepared.run(model={"architecture": architecture, "layers": 2, "width": 32, "heads": 4, "mlp_width": 48})
    model = new_model(run)
    assert model.config.model_type == architecture
    assert model.config.num_hidden_layers == 2
    assert model.config.hidden_size == 32
    assert model.config.num_attention_heads == 4
    assert model.config.vocab_size == prepared.tokenizer.vocab_size
    assert model.config.max_position_embeddings == 16
    assert model.config.eos_token_id == prepared.tokenizer.eos_id
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert any(48 in parameter.shape for parameter in model.parameters())
    logits = model(input_ids=torch.zeros(2, 16, dtype=torch.long)).logits
    assert logits.shape == (2, 16, prepared.tokenizer.vocab_size)


def test_the_seed_alone_decides_the_first_weights(prepared: Prepared) -> None:
    first, same, other = (new_model(prepared.run(seed=seed)).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_tied_embeddings_are_one_matrix_and_count_once(prepared: Prepared) -> None:
    tied, untied = (new_model(prepared.run(model={"tie_embeddings": tie})) for tie in (True, False))
    vocabulary = prepared.tokenizer.vocab_size
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert parameter_count(untied) - parameter_count(tied) == vocabulary * 16


def test_grouped_query_attention_has_fewer_key_heads(prepared: Prepared) -> None:
    model = new_model(prepared.run(model={"architecture": "llama", "kv_heads": 1}))
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (16, 16)
    assert shapes["model.layers.0.self_attn.k_proj.weight"] == (8, 16)


def test_only_parameters_named_by_a_pattern_are_trained(prepared: Prepared) -> None:
    model = new_model(prepared.run())
    freeze_all_but(model, ["*ln_1*", "*c_fc.bias"])
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    layer = "transformer.h.0"
    assert trained == {f"{layer}.ln_1.weight", f"{layer}.ln_1.bias", f"{layer}.mlp.c_fc.bias"}
    assert parameter_count(model, trainable_only=True) == 16 + 16 + 64


def test_a_pattern_that_names_nothing_is_refused(prepared: Prepared) -> None:
    with pytest.raises(ConfigError, match=r"'\*ln_7\*'.*transformer\.wte\.weight"):
        freeze_all_but(new_model(prepared.run()), ["*", "*ln_7*"])


def test_freezing_everything_is_refused(prepared: Prepared) -> None:
    with pytest.raises(ConfigError, match=r"train\.trainable"):
        freeze_all_but(new_model(prepared.run()), [])


# --- first weights ---


def test_gpt2_begins_with_residual_weights_scaled_by_depth(prepared: Prepared) -> None:
    model = new_model(prepared.run(model={"layers": 8, "width": 64}))
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            assert parameter.std().item() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.05)
        elif name.endswith(("c_attn.weight", "c_fc.weight")):
            assert parameter.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_eos_is_learnt_where_it_is_also_the_padding(prepared: Prepared, architecture: str) -> None:
    run = prepared.run(model={"architecture": architecture, "tie_embeddings": False})
    shape = shape_of_settings(run.config, prepared.tokenizer.model_copy(update={"pad_id": EOS}))
    object.__setattr__(run, "shape", shape)
    model = blank_model(run)
    model(input_ids=torch.full((1, 4), EOS)).logits.sum().backward()
    assert model.get_input_embeddings().weight[EOS].any()
    assert model.get_input_embeddings().weight.grad[EOS].any()


def test_no_documents_without_positions(prepared: Prepared) -> None:
    run = prepared.run(dataset={"document_masking": True})
    object.__setattr__(run, "shape", {**run.shape, "model_type": "bloom"})
    with pytest.raises(ConfigError, match=r"document_masking: BloomForCausalLM takes no position_ids"):
        blank_model(run)


# --- the loss ---


def batch(prepared: Prepared, rows: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    stream = torch.randint(6, prepared.tokenizer.vocab_size, (rows, 17), generator=torch.Generator().manual_seed(2))
    stream[:, [0, 5, 11]] = EOS
    inputs, labels = stream[:, :-1].clone(), stream[:, 1:].clone()
    labels[0, 10:] = -100
    return inputs, labels


def gradients(loss: Any, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The loss, and the gradients of all that is trained."""
    nats = loss(*inputs)
    trained = [parameter for parameter in loss.parameters() if parameter.requires_grad]
    return [nats.detach(), *torch.autograd.grad(nats, trained)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("chunk", [0, 1, 7, 4096])
def test_the_loss_is_that_of_the_models_own_logits(
    prepared: Prepared, architecture: str, tie: bool, chunk: int
) -> None:
    model = new_model(prepared.run(model={"architecture": architecture, "tie_embeddings": tie})).eval()
    inputs, labels = batch(prepared)
    nats, *found = gradients(NextTokenLoss(model, chunk).eval(), inputs, labels)
    expected = cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), labels.flatten())
    assert nats.dtype == torch.float32
    torch.testing.assert_close(nats, expected.detach())
    for one, other in zip(found, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_documents_in_a_block_do_not_see_each_other(prepared: Prepared, architecture: str) -> None:
    model = new_model(prepared.run(model={"architecture": architecture})).eval()
    loss, (inputs, labels) = NextTokenLoss(model, 7).eval(), batch(prepared)
    where = document_boundaries(inputs.numpy(), labels.numpy(), EOS)
    positions, documents = (torch.from_numpy(where[name]) for name in ("position_ids", "document_ids"))
    alone = [
        loss(inputs[row, places][None], labels[row, places][None])
        for row in range(3)
        for places in (documents[row] == number for number in range(int(documents[row].max()) + 1))
    ]
    torch.testing.assert_close(loss(inputs, labels, positions, documents), torch.stack(alone).sum())


def small(architecture: str, **changes: Any) -> PreTrainedModel:
    """Any transformers model."""
    shape = {"vocab_size": 400, "max_position_embeddings": 64, "num_hidden_layers": 2, "hidden_size": 32}
    shape |= {"num_attention_heads": 4, "intermediate_size": 64, "pad_token_id": 0}
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **shape | changes))
    return model


@pytest.mark.parametrize(
    ("architecture", "changes", "is_plain"),
    [
        ("gpt_neox", {}, True),
        ("mistral", {"num_key_value_heads": 2, "sliding_window": 8}, True),
        ("mixtral", {"num_key_value_heads": 2}, True),
        ("gemma2", {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8}, False),  # caps its logits
        ("granite", {"num_key_value_heads": 2, "logits_scaling": 2.0}, False),
        ("cohere", {"num_key_value_heads": 2}, False),  # scales them too
    ],
)
def test_models_that_change_their_logits_keep_them_whole(
    prepared: Prepared, architecture: str, changes: dict[str, Any], is_plain: bool
) -> None:
    model = small(architecture, **changes)
    assert has_plain_head(model) == is_plain
    assert not uses_own_attention(model)
    assert len(transformer_blocks(model)) == 2
    inputs, labels = batch(prepared)
    expected = cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(NextTokenLoss(model, 7)(inputs, labels), expected)


def test_looking_at_the_head_leaves_no_trace(prepared: Prepared) -> None:
    model, state = new_model(prepared.run()).train(), torch.get_rng_state()
    assert has_plain_head(model)
    assert model.training
    assert not model.get_output_embeddings()._forward_hooks
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_weights_get_no_gradient_from_the_loss(prepared: Prepared) -> None:
    model = new_model(prepared.run())
    freeze_all_but(model, ["*ln_f*"])
    NextTokenLoss(model, 7)(*batch(prepared)).backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
    }


def test_activations_computed_again_give_the_same_gradients(prepared: Prepared) -> None:
    found, kept = [], []
    for again in (False, True):
        torch.manual_seed(5)  # the same dropout
        loss = NextTokenLoss(new_model(prepared.run(gradient_checkpointing=again, model={"layers": 3})), 7).train()
        kept.append(0)

        def count(tensor: torch.Tensor) -> torch.Tensor:
            kept[-1] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            nats = loss(*batch(prepared))
        nats.backward()
        found.append([parameter.grad for parameter in loss.parameters()])
    assert kept[1] < kept[0] / 2
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# --- under the compiler ---


@pytest.fixture
def compiled_with(monkeypatch: pytest.MonkeyPatch) -> CompileCounter:
    """Everything is compiled afresh, in whole graphs, by a compiler that counts them and changes nothing."""
    torch.compiler.reset()
    counter, plain = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **_: plain(*args, backend=counter, fullgraph=True))
    return counter


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler's own
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("documents", [False, True], ids=["causal", "documents"])
def test_the_whole_loss_is_one_graph(
    prepared: Prepared, compiled_with: CompileCounter, architecture: str, documents: bool
) -> None:
    model = new_model(prepared.run(model={"architecture": architecture, "layers": 2, "dropout": 0.0}))
    loss, inputs = NextTokenLoss(model, 20), list(batch(prepared))
    if documents:
        where = document_boundaries(inputs[0].numpy(), inputs[1].numpy(), EOS)
        inputs += [torch.from_numpy(where[name]) for name in ("position_ids", "document_ids")]
    expected, names = gradients(loss, *inputs), list(model.state_dict())
    compile_model(loss, "model", torch.device("cpu"))
    found = gradients(loss, *inputs)
    assert compiled_with.frame_count == 1
    assert list(model.state_dict()) == names
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler's own
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_blocks_are_compiled_once_for_all(prepared: Prepared, compiled_with: CompileCounter, architecture: str) -> None:
    model = new_model(prepared.run(model={"architecture": architecture, "layers": 6, "dropout": 0.0}))
    loss = NextTokenLoss(model, 20)
    expected, names = gradients(loss, *batch(prepared)), list(model.state_dict())
    compile_model(loss, "blocks", torch.device("cpu"))
    found = gradients(loss, *batch(prepared))
    assert compiled_with.frame_count == 1
    assert list(model.state_dict()) == names
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # the compiler's own
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("how", ["model", "blocks"])
def test_compiled_models_compute_activations_again(prepared: Prepared, compiled_with: CompileCounter, how: Any) -> None:
    model = new_model(prepared.run(model={"layers": 2, "dropout": 0.0}, gradient_checkpointing=True)).train()
    loss = NextTokenLoss(model, 20)
    expected = gradients(loss, *batch(prepared))
    compile_model(loss, how, torch.device("cpu"))
    for one, other in zip(gradients(loss, *batch(prepared)), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert compiled_with.frame_count == 1


@pytest.mark.parametrize(("how", "device"), [("off", "cuda"), ("off", "cpu"), ("auto", "cpu"), ("auto", "mps")])
def test_nothing_is_compiled_unless_it_pays(
    prepared: Prepared, compiled_with: CompileCounter, how: Any, device: str
) -> None:
    loss = NextTokenLoss(new_model(prepared.run()), 20)
    compile_model(loss, how, torch.device(device))
    loss(*batch(prepared))
    assert compiled_with.frame_count == 0


# --- counts ---


def test_flops_of_gpt2_124m_are_those_of_the_paper() -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", vocab_size=50_304))
    assert flops_per_token(model, 1024) == pytest.approx(0.855e9, rel=1e-3)


def test_tables_that_are_looked_up_do_not_multiply(prepared: Prepared) -> None:
    tied, untied = (new_model(prepared.run(model={"tie_embeddings": tie})) for tie in (True, False))
    assert flops_per_token(tied, 16) == flops_per_token(untied, 16)
    wide = new_model(prepared.run(dataset={"block_size": 64}))
    assert flops_per_token(wide, 64) - flops_per_token(tied, 16) == 12 * 16 * (64 - 16)


def test_a_models_blocks_are_not_its_experts() -> None:
    model = small("mixtral", num_key_value_heads=2, num_local_experts=8)
    assert transformer_blocks(model) == list(model.model.layers)
