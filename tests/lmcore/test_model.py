"""Settings to a model: sizes, seeds, and what is frozen."""

import pytest
import torch

from lmcore.errors import ConfigError
from lmcore.model import freeze_all_but, new_model, parameter_count
from tests.conftest import Prepared

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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_position_sees_a_later_one(prepared: Prepared, architecture: str) -> None:
    model = new_model(prepared.run(model={"architecture": architecture})).eval()
    ids = torch.randint(0, prepared.tokenizer.vocab_size, (1, 16))
    changed = ids.clone()
    changed[0, 9:] = 7
    with torch.no_grad():
        assert torch.allclose(model(ids).logits[0, :9], model(changed).logits[0, :9], atol=1e-6)
        assert not torch.allclose(model(ids).logits[0, 9:], model(changed).logits[0, 9:], atol=1e-6)


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
