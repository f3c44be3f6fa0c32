"""The exported folder is an ordinary transformers model with the checkpoint's weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lmcore.errors import ConfigError, StoreError, TokenizerError
from lmcore.model.export import export, open_model
from lmcore.model.model import trained_model
from lmcore.runs.run import Export, Run
from lmcore.settings.config import CardConfig
from lmcore.store.artifacts import read_manifest
from tests.conftest import Prepared, Trained, train_and_evaluate

TEXTS = ["学習モデル", "def main():\n    return 1\n", "  two  spaces ", "😀 é ＡＢＣ"]


@pytest.fixture(scope="module")
def folder(trained: Trained) -> Path:
    return export(trained.training, trained.evaluation).model_dir


def test_transformers_opens_it_and_computes_the_same(trained: Trained, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    ours = trained_model(trained.run, trained.training.checkpoint).eval()
    ids = torch.randint(0, trained.run.tokenizer_info.vocab_size, (3, 16))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, ours(ids).logits)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "model", [{"architecture": "llama", "kv_heads": 1}, {"architecture": "qwen3", "tie_embeddings": False}]
)
def test_so_it_is_for_every_architecture(prepared: Prepared, model: dict[str, Any]) -> None:
    other = train_and_evaluate(prepared, prepared.run(model=model))
    opened = AutoModelForCausalLM.from_pretrained(export(other.training, other.evaluation).model_dir)
    ids = torch.randint(0, 400, (2, 16))
    with torch.no_grad():
        expected = trained_model(other.run, other.training.checkpoint).eval()(ids).logits
        assert torch.equal(opened(ids).logits, expected)


@pytest.mark.parametrize("text", TEXTS)
def test_its_tokenizer_gives_the_ids_that_were_trained_on(trained: Trained, folder: Path, text: str) -> None:
    tokenizer, ours = AutoTokenizer.from_pretrained(folder), trained.run.tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == ours.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == ours.eos_id
    assert tokenizer.vocab_size == ours.vocab_size


def test_a_pipeline_writes_without_a_word_of_warning(
    folder: Path, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    transformers.logging.set_verbosity_warning()
    transformers.logging.enable_propagation()
    try:
        write = transformers.pipeline("text-generation", str(folder), device="cpu")
        [answer] = write("def ")
    finally:
        transformers.logging.disable_propagation()
        transformers.logging.set_verbosity_error()
    assert answer["generated_text"].startswith("def ")
    assert caplog.records == []
    assert "warn" not in capfd.readouterr().err.lower()


def test_it_holds_a_card_and_safetensors_and_nothing_pickled(trained: Trained, folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert {"README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    card = (folder / "README.md").read_text()
    assert card.startswith('---\nlibrary_name: "transformers"')
    assert f"{trained.evaluation.bits_per_byte:.4f}" in card
    assert f"| dataset | {trained.run.identity['dataset_id']} |" in card


def test_the_card_says_what_the_settings_say_and_is_written_anew_for_others(own: Trained) -> None:
    folder = own.run.folder / "model"
    card = (folder / "README.md").read_text()
    assert "| licence | not stated: set card.licence before the model is passed on |" in card
    assert "license:" not in card
    record = json.loads((own.run.folder / "config.json").read_bytes())
    record["config"]["card"] = {"licence": "cc-by-sa-4.0", "languages": ["ja"]}
    (own.run.folder / "config.json").write_text(json.dumps(record))
    export(own.training, own.evaluation)
    card = (folder / "README.md").read_text()
    assert 'license: "cc-by-sa-4.0"\nlanguage: ["ja"]\n---' in card
    assert "| licence | cc-by-sa-4.0 |" in card


@pytest.mark.parametrize("card", [{"licence": "a b"}, {"languages": ["日本語"]}, {"languages": ["EN\n"]}])
def test_a_card_takes_codes_only(card: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        CardConfig.model_validate(card)


def test_the_code_on_the_card_runs(folder: Path) -> None:
    code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
    exec(code.replace("path/to/this/folder", str(folder)), {})


def test_it_is_written_once(trained: Trained, folder: Path) -> None:
    before = (folder / "model.safetensors").stat()
    again = export(trained.training, trained.evaluation)
    assert again == Export(model_dir=folder)
    again.verify()
    assert (folder / "model.safetensors").stat().st_ino == before.st_ino


@pytest.fixture
def own(prepared: Prepared) -> Trained:
    """A finished and exported run of the test's own."""
    run = train_and_evaluate(prepared, prepared.run())
    export(run.training, run.evaluation)
    return run


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "README.md", "manifest.json"])
def test_what_is_damaged_is_made_again(own: Trained, file: str) -> None:
    path = own.run.folder / "model" / file
    content = path.read_bytes()
    path.write_bytes(content[:-2])
    with pytest.raises(StoreError):
        Export(model_dir=path.parent).verify()
    export(own.training, own.evaluation).verify()
    assert path.read_bytes() == content


def test_other_weights_replace_it(own: Trained) -> None:
    result = own.training.model_copy(update={"weights": "of a training that was begun again"})
    export(result, own.evaluation).verify()
    assert read_manifest(own.run.folder / "model")["weights"] == result.weights


@pytest.mark.parametrize("kind", ["export", "run", "unfinished run", "checkpoint"])
def test_a_model_is_opened_from_wherever_it_is(prepared: Prepared, kind: str) -> None:
    own = train_and_evaluate(prepared, prepared.run())
    made = export(own.training, own.evaluation).model_dir
    if kind == "unfinished run":
        (own.run.folder / "training.json").unlink()
    folder = {"export": made, "checkpoint": own.training.checkpoint}.get(kind, own.run.folder)
    model, tokenizer, block_size = open_model(folder)
    assert block_size == 16
    expected, ids = trained_model(own.run, own.training.checkpoint), torch.arange(16)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(ids).logits, expected.eval()(ids).logits)
    for text in TEXTS:
        assert tokenizer.encode(text) == own.run.tokenizer().encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eos_id == own.run.tokenizer_info.eos_id


def test_what_is_no_model_is_named(prepared: Prepared, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{tmp_path} holds no model"):
        open_model(tmp_path)
    run = prepared.run()
    run.checkpoints.mkdir()
    with pytest.raises(StoreError, match="has no checkpoint yet"):
        open_model(run.folder)


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)


def pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, pickle])
@pytest.mark.parametrize("kind", ["export", "checkpoint", "run"])
def test_a_damaged_model_is_not_opened(own: Trained, damage: Any, kind: str) -> None:
    checkpoint = own.training.checkpoint
    damage(own.run.folder / "model" if kind == "export" else checkpoint)
    folder = {"export": own.run.folder / "model", "checkpoint": checkpoint, "run": own.run.folder}[kind]
    with pytest.raises(StoreError, match=r"model\.safetensors (has|is damaged|is missing)"):
        open_model(folder)


@pytest.mark.parametrize("damage", [truncate, pickle])
def test_what_transformers_cannot_open_is_said_in_words(folder: Path, tmp_path: Path, damage: Any) -> None:
    copy = without_manifest(folder, tmp_path)
    damage(copy)
    with pytest.raises(ConfigError, match=r"holds no model: .*pickled weights are never read"):
        open_model(copy)


def without_manifest(folder: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "manifest.json").unlink()
    return copy


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("eos", [None, [0, 1]])
def test_the_tokenizer_knows_the_end_where_the_model_does_not(
    trained: Trained, folder: Path, tmp_path: Path, eos: object
) -> None:
    copy = without_manifest(folder, tmp_path)
    edit_json(copy / "config.json", eos_token_id=eos)
    assert open_model(copy)[1].eos_id == trained.run.tokenizer_info.eos_id
    edit_json(copy / "tokenizer_config.json", eos_token=None)
    with pytest.raises(TokenizerError, match="names no end of text"):
        open_model(copy)


def test_a_model_without_a_longest_context_has_one(trained: Trained, folder: Path, tmp_path: Path) -> None:
    copy = without_manifest(folder, tmp_path)
    for name in ("config.json", "model.safetensors", "generation_config.json"):
        (copy / name).unlink()
    size = {"vocab_size": trained.run.tokenizer_info.vocab_size, "hidden_size": 16, "n_layer": 1, "n_head": 2}
    transformers.BloomForCausalLM(transformers.BloomConfig(**size)).save_pretrained(copy)
    assert open_model(copy)[2] == 2048


def test_its_control_ids_are_those_of_the_tokenizer(trained: Trained, prepared: Prepared) -> None:
    origin = export(trained.training, trained.evaluation).model_dir
    tokenizer = trained.run.tokenizer_info
    run = prepared.run(init_from=str(trained.training.checkpoint), max_steps=2)
    edited = {**run.shape, "bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": None}
    edit_json(run.folder / "config.json", shape=edited)
    other = train_and_evaluate(prepared, Run.open(run.folder))
    for made in (origin, export(other.training, other.evaluation).model_dir):
        config = transformers.AutoConfig.from_pretrained(made)
        ids = (config.bos_token_id, config.eos_token_id, config.pad_token_id)
        assert ids == (tokenizer.eos_id, tokenizer.eos_id, tokenizer.pad_id)
