"""A run begins with the weights of another model: whichever it is, wherever it lies, and only if it fits."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from lmcore.errors import ConfigError, RunError, StoreError, TokenizerError
from lmcore.model.export import export
from lmcore.model.model import new_model, trained_model
from lmcore.runs.initial_model import InitialModel
from lmcore.runs.prepare import prepare_run, run_name
from lmcore.runs.run import Run
from lmcore.store.artifacts import MANIFEST
from tests.conftest import Prepared, Trained, prepare, tiny_config, train_and_evaluate

Foreign = Callable[..., Path]
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt_neox": {},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "sliding_window": 8},
    "llama": {"num_key_value_heads": 2},
}


@pytest.fixture
def foreign(prepared: Prepared, tmp_path: Path) -> Foreign:
    """Save a model of transformers' own, with the prepared tokenizer, and give its folder."""

    def save(family: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> Path:
        shape = {"vocab_size": prepared.tokenizer.vocab_size, "max_position_embeddings": 32, "num_hidden_layers": 2}
        shape |= {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "pad_token_id": 0}
        torch.manual_seed(1)
        config = AutoConfig.for_model(family, **shape | FAMILIES.get(family, {}) | changes)
        folder = tmp_path / f"foreign-{family}"
        AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(folder)
        for file in prepared.tokenizer.folder.iterdir():
            if file.name != MANIFEST:
                shutil.copy(file, folder)
        return folder

    return save


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- what it begins with ---


def test_a_run_begins_with_a_checkpoint(prepared: Prepared, trained: Trained) -> None:
    checkpoint = trained.training.checkpoint
    model = new_model(prepared.run(init_from=str(checkpoint), seed=9, model={"layers": 7}))
    assert same(weights(model), load_file(checkpoint / "model.safetensors"))
    assert InitialModel.find(str(checkpoint)).optimizer_folder() == checkpoint


@pytest.mark.parametrize("tie", [True, False], ids=["tied", "untied"])
def test_a_run_begins_with_an_export(prepared: Prepared, tie: bool) -> None:
    done = train_and_evaluate(prepared, prepared.run(model={"architecture": "llama", "tie_embeddings": tie}))
    folder = export(done.training, done.evaluation).model_dir
    model = new_model(prepared.run(init_from=str(folder)))
    assert model.config.model_type == "llama"
    assert same(weights(model), weights(trained_model(done.run, done.training.checkpoint)))


@pytest.mark.parametrize("family", FAMILIES)
def test_any_language_model_is_trained_further(prepared: Prepared, foreign: Foreign, family: str) -> None:
    folder = foreign(family)
    run = prepared.run(init_from=str(folder), max_steps=12, learning_rate=1e-2, min_learning_rate=1e-3)
    assert same(weights(new_model(run)), weights(AutoModelForCausalLM.from_pretrained(folder)))
    done = train_and_evaluate(prepared, run)
    opened = AutoModelForCausalLM.from_pretrained(export(done.training, done.evaluation).model_dir).eval()
    assert opened.config.model_type == family
    ids = torch.randint(6, prepared.tokenizer.vocab_size, (2, 16))
    with torch.no_grad():
        expected = trained_model(run, done.training.checkpoint).eval()(ids).logits
        assert torch.equal(opened(ids).logits, expected)
        assert not torch.allclose(AutoModelForCausalLM.from_pretrained(folder)(ids).logits, expected, atol=0.1)
    card = (run.folder / "model" / "README.md").read_text()
    assert f"A {family} language model" in card
    assert f"(2 layers, 16 wide), trained from the weights of foreign-{family} on" in card


def test_a_continued_run_is_continued_again(prepared: Prepared, foreign: Foreign) -> None:
    done = train_and_evaluate(prepared, prepared.run(init_from=str(foreign("gpt_neox"))))
    model = new_model(prepared.run(init_from=str(done.training.checkpoint)))
    assert model.config.model_type == "gpt_neox"
    assert same(weights(model), load_file(done.training.checkpoint / "model.safetensors"))


def test_weights_are_trained_in_fp32_however_they_were_saved(prepared: Prepared, foreign: Foreign) -> None:
    model = new_model(prepared.run(init_from=str(foreign(dtype=torch.bfloat16))))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_weights_in_several_files_are_one_model(prepared: Prepared, foreign: Foreign) -> None:
    folder = foreign()
    model = AutoModelForCausalLM.from_pretrained(folder)
    whole = InitialModel.find(str(folder)).fingerprint()
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="5kB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    assert same(weights(new_model(prepared.run(init_from=str(folder)))), weights(model))
    assert InitialModel.find(str(folder)).fingerprint() != whole


def test_a_finished_run_needs_its_origin_no_more(prepared: Prepared, foreign: Foreign) -> None:
    folder = foreign()
    run = prepared.run(init_from=str(folder))
    done = train_and_evaluate(prepared, run)
    shutil.rmtree(folder)
    export(done.training, done.evaluation).verify()


def test_eos_is_learnt_even_where_the_source_pads_with_it(prepared: Prepared, foreign: Foreign) -> None:
    eos = prepared.tokenizer.eos_id
    model = new_model(prepared.run(init_from=str(foreign(pad_token_id=eos, tie_word_embeddings=False))))
    model(input_ids=torch.full((1, 4), eos)).logits.logsumexp(-1).sum().backward()
    assert model.get_input_embeddings().weight.grad[eos].any()


# --- the hub ---


def test_a_hub_name_is_fetched(prepared: Prepared, foreign: Foreign, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = foreign(), []

    def download(name: str, **settings: Any) -> str:
        asked.append((name, settings["allow_patterns"]))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    run = prepared.run(init_from="user/some-model")
    assert same(weights(new_model(run)), weights(AutoModelForCausalLM.from_pretrained(folder)))
    assert run.config.train.init_from == "user/some-model"
    [(name, patterns)] = asked
    assert name == "user/some-model"
    assert "model*.safetensors" in patterns
    assert not [pattern for pattern in patterns if pattern.endswith((".bin", ".pt"))]


@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (errors.HTTPError("no route"), ConnectionError, r"train\.init_from: the hub did not answer for user/"),
        (errors.HFValidationError("bad name"), ConfigError, r"train\.init_from: user/.* no model of that name came"),
    ],
    ids=["silent", "unknown"],
)
def test_a_hub_that_gives_nothing(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, failure: Exception, expected: type[Exception], message: str
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(expected, match=message):
        prepared.run(init_from="user/failing-model")


# --- what names it ---


def test_content_names_the_run_and_its_place_does_not(prepared: Prepared, foreign: Foreign, tmp_path: Path) -> None:
    folder = foreign()
    moved = shutil.copytree(folder, tmp_path / "moved")
    config, elsewhere = (prepared.changed(init_from=str(each)) for each in (folder, moved))
    name = run_name(config, prepared.dataset)
    assert name.startswith("continued-")
    assert run_name(elsewhere, prepared.dataset) == name
    assert run_name(prepared.changed(init_from=str(folder), model={"layers": 9}), prepared.dataset) == name
    change(moved)
    assert run_name(elsewhere, prepared.dataset) != name
    assert run_name(prepared.changed(), prepared.dataset) != name


def test_a_checkpoint_is_named_without_being_read(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: Path) -> str:
        raise AssertionError(f"{path} was read")

    monkeypatch.setattr("lmcore.runs.initial_model.hash_file", read)
    assert len(InitialModel.find(str(trained.training.checkpoint)).fingerprint()) == 16


def change(folder: Path) -> None:
    """Other weights in the same file."""
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def test_a_named_run_refuses_other_first_weights(prepared: Prepared, foreign: Foreign, tmp_path: Path) -> None:
    folder = foreign()
    config = prepared.changed(init_from=str(folder)).model_copy(update={"run": "mine"})
    run = prepare_run(config, prepared.dataset, prepared.tokenizer, tmp_path)
    was = run.identity["first_weights"]
    change(folder)
    with pytest.raises(RunError, match="have changed since the run began"):
        new_model(run)
    with pytest.raises(RunError, match=f"first_weights: was '{was}', is '"):
        prepare_run(config, prepared.dataset, prepared.tokenizer, tmp_path)


def test_a_relative_path_is_kept_as_a_whole_one(
    prepared: Prepared, foreign: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = foreign()
    monkeypatch.chdir(folder.parent)
    run = prepared.run(init_from=folder.name)
    monkeypatch.chdir("/")
    new_model(Run.open(run.folder))


# --- what does not fit ---


def test_another_tokenizer_is_refused_and_both_are_shown(prepared: Prepared, trained: Trained, tmp_path: Path) -> None:
    config = tiny_config(Path(prepared.config.corpus.paths[0]), tmp_path / "store")
    tokenizer = config.tokenizer.model_copy(update={"vocab_size": 390})
    other = prepare(config.model_copy(update={"tokenizer": tokenizer}))
    with pytest.raises(TokenizerError) as caught:
        other.run(init_from=str(trained.training.checkpoint))
    text = str(caught.value)
    assert f"tokenizer: {prepared.tokenizer.id} there, {other.tokenizer.id} here" in text
    assert re.search(r"\n  id \d+: '.+' there, '.+' here\n", text)
    assert re.search(r"\n\d+ differences in all", text)
    assert f"tokenizer.source = '{prepared.tokenizer.folder}'" in text
    assert not list((other.store / "runs").glob("*/config.json"))


def test_a_tokenizer_loaded_from_the_source_is_the_sources(
    prepared: Prepared, foreign: Foreign, tmp_path: Path
) -> None:
    folder = foreign()
    config = tiny_config(Path(prepared.config.corpus.paths[0]), tmp_path / "store")
    loaded = prepare(
        config.model_copy(update={"tokenizer": config.tokenizer.model_copy(update={"source": str(folder)})})
    )
    assert loaded.tokenizer.id != prepared.tokenizer.id
    new_model(loaded.run(init_from=str(folder)))


def test_one_other_piece_is_another_tokenizer(prepared: Prepared, foreign: Foreign) -> None:
    folder = foreign()
    (folder / "tokenizer.model").unlink()
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"<0x41>"', '"<0xXX>"'))
    with pytest.raises(TokenizerError, match=r"id \d+: '<0xXX>' there, '<0x41>' here"):
        prepared.run(init_from=str(folder))


def test_a_model_without_a_tokenizer_is_refused(prepared: Prepared, foreign: Foreign) -> None:
    folder = foreign()
    for file in folder.glob("*token*"):
        file.unlink()
    with pytest.raises(TokenizerError, match="holds no tokenizer that transformers opens"):
        prepared.run(init_from=str(folder))


def test_a_model_with_fewer_ids_is_refused(prepared: Prepared, foreign: Foreign) -> None:
    with pytest.raises(TokenizerError, match=r"has embeddings for 300 ids, this run's tokenizer \w+ has 400"):
        prepared.run(init_from=str(foreign(vocab_size=300)))


def test_a_block_longer_than_the_models_positions_is_refused(prepared: Prepared, foreign: Foreign) -> None:
    folder = foreign()
    new_model(prepared.run(init_from=str(folder), dataset={"block_size": 32}))
    with pytest.raises(ConfigError, match=r"dataset\.block_size is 33, and .* has 32 positions"):
        prepared.run(init_from=str(folder), dataset={"block_size": 33})


def test_only_checkpoints_have_an_optimizers_state(prepared: Prepared, trained: Trained, foreign: Foreign) -> None:
    prepared.run(init_from=str(trained.training.checkpoint), init_optimizer=True)
    with pytest.raises(ConfigError, match="holds no optimizer's state, which only a run's checkpoints do"):
        prepared.run(init_from=str(foreign()), init_optimizer=True)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def unknown(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "brandnew"}))


def translator(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "t5"}))


def lacking(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def truncated(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "does not exist"),
        (lambda folder: (folder / "config.json").unlink(), "holds no model: no config.json there names a model_type"),
        (pickled, "holds no model.*safetensors. Pickled weights are never read"),
        (unknown, "transformers .* knows no model type 'brandnew'"),
        (translator, "transformers cannot open a language model"),
        (lacking, r"lacks 1 of the weights of LlamaForCausalLM, such as model\.norm\.weight"),
        (truncated, "transformers cannot open a language model"),
    ],
    ids=["missing", "empty", "pickled", "unknown", "translator", "lacking", "truncated"],
)
def test_what_is_no_model_is_named(prepared: Prepared, foreign: Foreign, damage: Any, message: str) -> None:
    folder = foreign()
    damage(folder)
    with pytest.raises(ConfigError, match=f"train.init_from: .*{message}"):
        new_model(prepared.run(init_from=str(folder)))


def test_an_encoder_is_no_language_model(prepared: Prepared, foreign: Foreign) -> None:
    with pytest.raises(ConfigError, match=r"BertLMHeadModel in .* is not causal: it sees later tokens"):
        new_model(prepared.run(init_from=str(foreign("bert"))))


def test_a_run_is_no_model_but_holds_some(prepared: Prepared, trained: Trained) -> None:
    with pytest.raises(ConfigError, match=r"Give a checkpoint \(runs/NAME/checkpoints/step-\.\.\.\), an export"):
        prepared.run(init_from=str(trained.run.folder))


def test_a_damaged_checkpoint_is_refused(prepared: Prepared, trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.run.folder, tmp_path / "runs" / "copy")
    [checkpoint] = (folder / "checkpoints").glob(f"step-{trained.training.step:08d}")
    shutil.copytree(prepared.tokenizer.folder, tmp_path / "tokenizers" / prepared.tokenizer.id)
    run = prepared.run(init_from=str(checkpoint))
    new_model(run)
    file = checkpoint / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        new_model(run)
