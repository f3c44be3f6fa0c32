"""What an export says for programs that are not the transformers that wrote it."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import gguf
import pytest
import sentencepiece
from transformers import AutoTokenizer

from lmcore.model.export import export, open_model
from lmcore.model.generate import generate
from lmcore.settings.config import RunConfig, SampleConfig
from lmcore.tokenizer.make import identify, make_tokenizer
from lmcore.tokenizer.sentencepiece_model import read_model, sentencepiece_of
from lmcore.tokenizer.tokenizer import Tokenizer
from tests.conftest import Prepared, Trained, prepare, tiny_config, train_and_evaluate, write_corpus

HALF_WIDTH = Path(__file__).parents[3] / "shared" / "cases" / "half-width.jsonl"
TEXTS = ["これはﾃｽﾄﾃﾞｰﾀのための短い文です。①番は0番、値は0です。", "が ㈱ ｱ", "plain", "  two  ", "\u2581"]


def texts() -> list[str]:
    if not HALF_WIDTH.exists():
        return TEXTS
    return TEXTS + [json.loads(line)["text"] for line in HALF_WIDTH.read_text(encoding="utf-8").splitlines()]


def made(folder: Path, **sections: dict[str, Any]) -> Trained:
    corpus = write_corpus(folder / "corpus")
    with open(corpus / "text.txt", "a", encoding="utf-8") as file:
        file.writelines(f"{text}\n" for text in texts())
    content = tiny_config(corpus, folder / "store", max_steps=2).model_dump()
    for name, changes in sections.items():
        content[name] |= changes
    prepared = prepare(RunConfig.model_validate(content))
    trained = train_and_evaluate(prepared, prepared.run())
    export(trained.training, trained.evaluation)
    return trained


@pytest.mark.parametrize("form", ["NFKC", "NFC"])
@pytest.mark.parametrize("kind", ["bpe", "byte_bpe", "unigram"])
def test_the_export_gives_raw_text_the_ids_of_training(tmp_path: Path, kind: str, form: str) -> None:
    run = made(tmp_path, corpus={"normalize": form}, tokenizer={"model_type": kind}).run
    trained_on, folder = Tokenizer(run.tokenizer_folder), run.folder / "model"
    plain, (model, ours, _) = AutoTokenizer.from_pretrained(folder), open_model(folder)
    for text in texts():
        wanted = trained_on.encode(unicodedata.normalize(form, text))
        assert ours.encode(text) == run.tokenizer().encode(text) == wanted, text
        if (kind, form) != ("unigram", "NFC"):  # SentencePiece has no rules for it
            assert plain.encode(text) == wanted, text
    prompts = SampleConfig(prompts=["ﾃｽﾄ", unicodedata.normalize(form, "ﾃｽﾄ")], temperature=0, tokens=4)
    assert len({text.strip() for text in generate(model, ours, prompts, 16)}) == 1
    if (kind, form) == ("unigram", "NFC"):
        assert "Normalize text to NFC" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("kind", "architecture", "name"),
    [
        ("bpe", "llama", "tokenizer.model"),
        ("bpe", "gpt2", "spiece.model"),
        ("bpe", "qwen3", "spiece.model"),
        ("unigram", "llama", "spiece.model"),
    ],
)
def test_llama_cpp_finds_a_model_only_where_it_reads_it_rightly(
    tmp_path: Path, kind: str, architecture: str, name: str
) -> None:
    run = made(tmp_path, tokenizer={"model_type": kind}, model={"architecture": architecture}).run
    folder = run.folder / "model"
    assert [path.name for path in folder.glob("*.model")] == [name]
    ours = Tokenizer(run.tokenizer_folder)
    as_others_do = sentencepiece.SentencePieceProcessor(model_file=str(folder / name))
    for text in texts():
        assert as_others_do.encode(text) == ours.encode(text) or "\u2581" in text
    if name == "tokenizer.model":
        proto = read_model(folder / name)
        assert not any(" " in piece.piece for piece in proto.pieces)
        assert not proto.normalizer_spec.add_dummy_prefix
        assert json.loads((folder / "tokenizer_config.json").read_bytes())["add_prefix_space"] is False
    assert gguf.SpecialVocab(folder).special_token_ids["eos"] == ours.eos_id


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_an_export_s_tokenizer_is_loaded_as_what_it_is(tmp_path: Path, architecture: str) -> None:
    run = made(tmp_path, model={"architecture": architecture}).run
    folder = run.folder / "model"
    settings = run.config.tokenizer.model_copy(update={"source": str(folder)})
    corpus: Any = None  # of one that is loaded nothing is asked of the text
    info = make_tokenizer(settings, run.config.corpus, corpus, tmp_path / "other")
    assert info.model_type == "bpe"
    assert info.id == identify(settings, corpus)
    assert sentencepiece_of(folder) == read_model(run.tokenizer_folder / "tokenizer.model")
    loaded, ours = Tokenizer(info.folder), Tokenizer(run.tokenizer_folder)
    assert all(loaded.encode(text) == ours.encode(text) for text in texts())


def test_gpt2_says_its_context_in_the_older_name_too(trained: Trained, prepared: Prepared) -> None:
    folder = export(trained.training, trained.evaluation).model_dir
    config = json.loads((folder / "config.json").read_bytes())
    assert config["n_ctx"] == config["n_positions"] == 16
    tokenizer = json.loads((folder / "tokenizer_config.json").read_bytes())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in tokenizer
