"""Our attention gives transformers' own logits, with no mask where none is needed, and documents stay apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from lmcore.model.attention import training_mask, use_own_attention, uses_own_attention


@pytest.fixture(autouse=True)
def _nothing_is_compiled_yet() -> None:
    torch.compiler.reset()


FAMILIES = ["gpt2", "llama", "qwen3"]
TOKENS = 48
IDS = torch.randint(6, 97, (3, TOKENS), generator=torch.Generator().manual_seed(1))
DOCUMENTS = torch.tensor([[0] * 10 + [1] * 1 + [2] * 37, [0] * 47 + [1], [0] * 48])
POSITIONS = torch.tensor([[*range(10), 0, *range(37)], [*range(47), 0], [*range(48)]])


def build(family: str, attention: str = "sdpa", dropout: float = 0.0, **changes: Any) -> PreTrainedModel:
    settings: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4}
    settings |= {"vocab_size": 97, "max_position_embeddings": TOKENS}
    if family == "gpt2":
        settings |= {"attn_pdrop": dropout, "resid_pdrop": 0.0, "embd_pdrop": 0.0}
    else:
        settings |= {"num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 96, "attention_dropout": dropout}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **settings | {"bos_token_id": 3, "eos_token_id": 3} | changes)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.eval()


def own(family: str, **settings: Any) -> PreTrainedModel:
    model = build(family, **settings)
    use_own_attention(model)
    assert uses_own_attention(model)
    return model


def logits(model: PreTrainedModel, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**{"input_ids": IDS, "use_cache": False} | inputs).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_logits_are_those_of_plain_transformers(family: str) -> None:
    found = logits(own(family), attention_mask=training_mask(IDS))
    assert torch.equal(found, logits(build(family)))
    torch.testing.assert_close(found, logits(build(family, "eager")), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"attention_mask": (torch.arange(TOKENS) >= torch.tensor([[0], [5], [20]])).long()},
        {"position_ids": POSITIONS},
    ],
    ids=["nothing", "padding", "positions"],
)
def test_all_else_is_as_in_plain_transformers(family: str, inputs: dict[str, Any]) -> None:
    assert torch.equal(logits(own(family), **inputs), logits(build(family), **inputs))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_cache_is_read_whole(family: str) -> None:
    model = own(family)
    with torch.no_grad():
        begun = model(input_ids=IDS[:, :-4], use_cache=True)
        one = model(input_ids=IDS[:, -4:-3], past_key_values=begun.past_key_values, use_cache=True)
        rest = model(input_ids=IDS[:, -3:], past_key_values=one.past_key_values, use_cache=True)
    found = torch.cat([begun.logits, one.logits, rest.logits], dim=1)
    torch.testing.assert_close(found, logits(model), atol=1e-5, rtol=1e-5)


# --- documents ---


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_documents_have_the_logits_they_have_alone(family: str) -> None:
    model = own(family)
    packed = logits(model, position_ids=POSITIONS, attention_mask=training_mask(IDS, DOCUMENTS))
    for row in range(3):
        for number in range(int(DOCUMENTS[row].max()) + 1):
            places = DOCUMENTS[row] == number
            alone = logits(build(family), input_ids=IDS[row, places][None])
            torch.testing.assert_close(packed[row, places], alone[0], atol=1e-6, rtol=1e-5)


def test_a_document_mask_is_causal_and_block_diagonal() -> None:
    mask = training_mask(IDS, torch.tensor([[0, 0, 1, 1, 1]]))
    expected = torch.block_diag(torch.ones(2, 2), torch.ones(3, 3)).tril().bool()
    assert torch.equal(mask, expected[None, None])


# --- what reaches the kernel ---


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_the_kernel_is_told_causal_and_given_no_mask(
    family: str, is_compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, seen = own(family, dropout=0.25).train(), []
    plain = functional.scaled_dot_product_attention

    def watched(*tensors: torch.Tensor, **settings: Any) -> torch.Tensor:
        seen.append(settings)
        return plain(*tensors, **settings)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    call = torch.compile(model, fullgraph=True, backend="eager") if is_compiled else model
    call(input_ids=IDS, attention_mask=training_mask(IDS), use_cache=False)
    assert len(seen) == 2
    for settings in seen:
        assert (settings["is_causal"], settings["attn_mask"], settings["dropout_p"]) == (True, None, 0.25)
        assert settings.get("enable_gqa", False) == (family != "gpt2")


@pytest.mark.parametrize("family", FAMILIES)
def test_compiled_in_one_graph_it_computes_the_same(family: str) -> None:
    model = own(family)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for inputs in (
        {"attention_mask": training_mask(IDS)},
        {"attention_mask": training_mask(IDS, DOCUMENTS), "position_ids": POSITIONS},
    ):
        torch.testing.assert_close(logits(compiled, **inputs), logits(model, **inputs), atol=1e-6, rtol=1e-5)


# --- which models, and what is saved ---


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("mistral", {"sliding_window": 8}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ],
    ids=["mistral", "qwen3"],
)
def test_models_with_windows_keep_theirs(family: str, changes: dict[str, Any]) -> None:
    model = build(family, **changes)
    use_own_attention(model)
    assert not uses_own_attention(model)


def test_what_is_saved_opens_with_transformers_alone(tmp_path: Path) -> None:
    model = own("llama")
    model.save_pretrained(tmp_path)
    assert not [name for name in json.loads((tmp_path / "config.json").read_bytes()) if "attn_implementation" in name]
    opened = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert opened.config._attn_implementation == "sdpa"
    assert torch.equal(logits(opened), logits(model))
