"""Text to ids and back without loss, and transformers sees the same ids."""

import base64
import gzip
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import sentencepiece
from huggingface_hub import errors
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmcore.corpus.listing import Corpus, open_corpus
from lmcore.corpus.scan import scan
from lmcore.errors import CorpusError, FileChangedError, TokenizerError, is_transient
from lmcore.settings.config import SPECIAL_PIECES, CorpusConfig, RunConfig, TokenizerConfig
from lmcore.store.artifacts import verify_artifact
from lmcore.store.layout import prepare_store
from lmcore.tokenizer import sentencepiece_model
from lmcore.tokenizer.byte_bpe import train_byte_bpe
from lmcore.tokenizer.make import identify, make_tokenizer
from lmcore.tokenizer.sentencepiece_model import (
    MODEL_FILE,
    character_pairs,
    read_model,
    save_model,
    split_exactly,
    train_model,
)
from lmcore.tokenizer.tokenizer import Tokenizer, TokenizerInfo
from lmcore.tokenizer.transformers_view import open_in_transformers
from tests.conftest import write_corpus

Make = Callable[..., TokenizerInfo]
FAMILIES = ["bpe", "unigram", "byte_bpe"]


@pytest.fixture(scope="module")
def make(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes tokenizers for the tests' corpus in one store."""
    store = prepare_store(tmp_path_factory.mktemp("tokenizers") / "store")
    corpus_config = CorpusConfig(paths=[str(corpus)])
    described = Corpus.from_scan(scan(corpus_config), corpus_config)

    def make(**settings: object) -> TokenizerInfo:
        config = TokenizerConfig.model_validate({"vocab_size": 400, **settings})
        return make_tokenizer(config, corpus_config, described, store)

    return make


def in_transformers(info: TokenizerInfo) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(info.folder)


@pytest.fixture(scope="module", params=["bpe", "byte_bpe"])
def bpe(make: Make, request: pytest.FixtureRequest) -> tuple[Tokenizer, Any]:
    info = make(model_type=request.param)
    assert (info.model_type, info.vocab_size, info.seen_bytes) == (request.param, 400, info.corpus_bytes)
    return Tokenizer(info.folder), in_transformers(info)


any_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
hostile_text = st.text("\u2581 \n\r\t\0</s>あＡ😀\u3000\u200d", max_size=40)


@settings(max_examples=200)
@given(text=any_text | hostile_text)
def test_text_comes_back_here_and_in_plain_transformers(bpe: tuple[Tokenizer, Any], text: str) -> None:
    own, theirs = bpe
    ids = own.encode(text)
    assert own.decode(ids) == text
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs.decode(ids) == text


@pytest.mark.parametrize("piece", SPECIAL_PIECES)
@pytest.mark.parametrize("model_type", FAMILIES)
def test_text_never_becomes_a_control_id(make: Make, model_type: str, piece: str) -> None:
    info = make(model_type=model_type)
    text = f"a{piece}{piece} b {piece}"
    own, theirs = Tokenizer(info.folder), in_transformers(info)
    assert min(own.encode(text)) >= len(SPECIAL_PIECES)
    assert own.decode(own.encode(text)) == text
    assert theirs.encode(text, add_special_tokens=False) == own.encode(text)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_special_ids_are_the_tutorials(make: Make, model_type: str) -> None:
    theirs = in_transformers(make(model_type=model_type))
    assert [theirs.convert_tokens_to_ids(piece) for piece in SPECIAL_PIECES] == [0, 1, 2, 3, 4, 5]
    assert (theirs.pad_token_id, theirs.eos_token_id) == (0, 3)
    assert theirs.decode([3, 4, 5], skip_special_tokens=True) == ""


@settings(max_examples=100)
@given(text=any_text | hostile_text)
def test_unigram_is_exact_here(unigram: Tokenizer, text: str) -> None:
    assert unigram.decode(unigram.encode(text)) == text


@pytest.fixture(scope="module")
def unigram(make: Make) -> Tokenizer:
    return Tokenizer(make(model_type="unigram").folder)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_users_control_tokens_are_made_by_nobody_else(tmp_path: Path, model_type: str) -> None:
    tokens = ["<|user|>", "</答え>"]
    (tmp_path / "x.txt").write_text("".join(f"{n % 9}<|user|>学習</答え><|us モデル{n}\n" for n in range(999)))
    corpus = CorpusConfig(paths=[str(tmp_path / "x.txt")])
    settings = TokenizerConfig(vocab_size=310, model_type=model_type, special_tokens=tokens)  # type: ignore[arg-type]
    info = make_tokenizer(settings, corpus, Corpus.from_scan(scan(corpus), corpus), tmp_path / "store")
    own, theirs, text = Tokenizer(info.folder), in_transformers(info), "<|user|>学習</答え></s>"
    assert own.decode(own.encode(text)) == text
    assert min(own.encode(text)) > 7
    assert theirs.encode(text) == own.encode(text)
    assert theirs.extra_special_tokens == tokens
    assert theirs.convert_tokens_to_ids(tokens) == [6, 7]
    assert theirs.encode(text, split_special_tokens=False) == [6, *own.encode("学習"), 7, 3]
    assert own.decode([6, *own.encode("学習"), 7, 3]) == "学習"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"special_tokens": ["<a>", "<a>"]}, "<a> stands for something else already, or is there twice"),
        ({"special_tokens": ["</s>"]}, "</s> stands for something else already"),
        ({"special_tokens": ["<0x0A>"]}, "<0x0A> stands for something else already"),
        ({"special_tokens": [""]}, "'' is empty or holds white space"),
        ({"special_tokens": ["<a b>"]}, "'<a b>' is empty or holds white space"),
        ({"special_tokens": [f"<{n}>" for n in range(50)], "vocab_size": 300}, "300 is less than the 312 bytes and"),
    ],
)
def test_special_tokens_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        TokenizerConfig.model_validate(settings)


@pytest.mark.parametrize("token", ["data", "x"])
def test_a_special_token_that_is_a_word_of_the_text_is_refused(make: Make, token: str) -> None:
    with pytest.raises(TokenizerError, match=rf"{token} is also a piece of ordinary text.*<\|{token}\|>"):
        make(model_type="byte_bpe", special_tokens=[token], vocab_size=500)


def test_a_loaded_tokenizer_must_have_the_special_tokens(make: Make) -> None:
    trained = make(special_tokens=["<|user|>"])
    source = str(trained.folder)
    assert make(source=source, special_tokens=["<|user|>"]).vocab_size == trained.vocab_size
    with pytest.raises(TokenizerError, match=r"<\|system\|> is not a control token of"):
        make(source=source, special_tokens=["<|system|>"])


@settings(max_examples=50)
@given(texts=st.lists(any_text | hostile_text, max_size=6))
def test_a_batch_is_the_texts_one_by_one_each_with_an_end(bpe: tuple[Tokenizer, Any], texts: list[str]) -> None:
    own, theirs = bpe
    one_by_one = [theirs.encode(text) for text in texts]
    ids, lengths = own.encode_flat([text.encode() for text in texts])
    assert ids.tolist() == [token for one in one_by_one for token in (*one, own.eos_id)]
    assert (ids.dtype, lengths.dtype) == (own.dtype, "int64")
    assert lengths.tolist() == [len(one) + 1 for one in one_by_one]
    assert [own.encode(text) for text in texts] == one_by_one


words = st.sampled_from(["学習", "モデル", "です。", " ", "\n", "model", "aa", "a", "😀", "\u2581", "123"])


@settings(max_examples=50)
@given(text=st.lists(words, min_size=20, max_size=200).map("".join), size=st.integers(1, 20))
def test_a_long_text_is_cut_where_its_ids_do_not_change(make: Make, text: str, size: int) -> None:
    path = make().folder / MODEL_FILE
    whole = sentencepiece.SentencePieceProcessor(model_file=str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece_model, "_PART_CHARACTERS", size)
        parts = split_exactly(text.encode(), character_pairs(read_model(path)))
    assert b"".join(parts).decode() == text
    assert len(parts) > 1 or len(text) < 200
    assert [token for part in parts for token in whole.encode(part.decode())] == whole.encode(text)


def test_a_unigram_text_is_never_cut(make: Make) -> None:
    pairs = character_pairs(read_model(make(model_type="unigram").folder / MODEL_FILE))
    assert split_exactly(b"a\n" * 9000, pairs) == [b"a\n" * 9000]


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_same_inputs_give_the_same_bytes(make: Make, corpus: Path, tmp_path: Path, model_type: str) -> None:
    config = CorpusConfig(paths=[str(corpus)])
    settings = TokenizerConfig.model_validate({"vocab_size": 400, "model_type": model_type})
    other = make_tokenizer(settings, config, Corpus.from_scan(scan(config), config), prepare_store(tmp_path))
    first = make(model_type=model_type)
    assert other.id == first.id
    assert verify_artifact(other.folder)["files"] == verify_artifact(first.folder)["files"]


def test_all_training_text_is_seen_and_no_validation_text(make: Make, corpus: Path) -> None:
    info = make()
    assert 0.9 * (corpus / "text.txt").stat().st_size < info.corpus_bytes < (corpus / "text.txt").stat().st_size
    assert info.seen_bytes == info.corpus_bytes


def test_long_lines_and_reserved_marks_cost_only_themselves(tmp_path: Path) -> None:
    line = "長い行です。" * 20_000
    (tmp_path / "x.jsonl").write_text(
        "\n".join(json.dumps({"text": text}) for text in [line, "a\0b\u2585c", *map(str, range(1000))])
    )
    config = CorpusConfig(paths=[str(tmp_path / "x.jsonl")], validation_fraction=0.001)
    info = make_tokenizer(
        TokenizerConfig(vocab_size=320), config, Corpus.from_scan(scan(config), config), tmp_path / "store"
    )
    assert info.corpus_bytes - info.seen_bytes == len("\0\u2585".encode())


@pytest.mark.parametrize(("model_type", "file"), [("bpe", MODEL_FILE), ("byte_bpe", "tokenizer.json")])
def test_above_the_budget_the_choice_does_not_depend_on_the_order(tmp_path: Path, model_type: str, file: str) -> None:
    lines = [f"これは{number}番目の文です。今日は{number % 7}日です。" for number in range(1000)]
    models = []
    for name, order in (("a", lines), ("b", lines[::-1])):
        (tmp_path / f"{name}.txt").write_text("\n".join(order) + "\n")
        config = CorpusConfig(paths=[str(tmp_path / f"{name}.txt")])
        info = make_tokenizer(
            TokenizerConfig.model_validate({"vocab_size": 320, "max_train_bytes": 5000, "model_type": model_type}),
            config,
            Corpus.from_scan(scan(config), config),
            tmp_path / "store",
        )
        assert info.seen_bytes <= 5000 < info.corpus_bytes
        models.append((info.folder / file).read_bytes())
    assert models[0] == models[1]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_our_folder_and_its_model_file_load_as_the_same_tokenizer(make: Make, model_type: str) -> None:
    info = make(model_type=model_type)
    text = "学習 モデル\u2581\n data 123"
    expected = Tokenizer(info.folder).encode(text)
    for source in (info.folder, info.folder / "tokenizer.model"):
        loaded = make(source=str(source))
        assert loaded.model_type == model_type
        assert loaded.seen_bytes == 0
        assert Tokenizer(loaded.folder).encode(text) == expected


def test_a_model_that_normalizes_keeps_its_own_ids(make: Make, corpus: Path, tmp_path: Path) -> None:
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus / "text.txt"), model_prefix=str(tmp_path / "m"), vocab_size=120, minloglevel=2
    )
    info = make(source=str(tmp_path / "m.model"))
    bare = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    text = "ＡＢＣ  学習 モデル"
    assert Tokenizer(info.folder).encode(text) == bare.encode(text)
    assert in_transformers(info).encode(text, add_special_tokens=False) == bare.encode(text)


def test_a_transformers_folder_gives_its_own_ids(make: Make, transformers_folder: Callable[..., Path]) -> None:
    info = make(source=str(transformers_folder(eos_token="<|end|>")))
    own, text = Tokenizer(info.folder), "学習 データ<|end|> é"
    assert own.eos_id not in own.encode(text)
    assert own.decode(own.encode(text)) == text
    plain = text.replace("<|end|>", "")
    assert own.encode(plain) == in_transformers(info).encode(plain, add_special_tokens=False)


def test_a_loaded_folder_makes_no_ids_in_transformers_that_it_does_not_make_here(
    make: Make, transformers_folder: Callable[..., Path]
) -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import processors

    folder = transformers_folder(eos_token="<|end|>", extra_special_tokens=["<|user|>"], chat_template="{{ 1 }}")
    fast = Fast.from_file(str(folder / "tokenizer.json"))
    fast.post_processor = processors.TemplateProcessing(single="<|end|> $A", special_tokens=[("<|end|>", 0)])
    fast.enable_truncation(4)
    fast.enable_padding(length=64)
    fast.save(str(folder / "tokenizer.json"))
    info, text = make(source=str(folder)), "学習<|end|>データ<|user|>"
    own, theirs = Tokenizer(info.folder), in_transformers(info)
    assert own.decode(own.encode(text)) == text
    assert theirs.encode(text) == own.encode(text)
    assert not {0, theirs.convert_tokens_to_ids("<|user|>")} & {*own.encode(text)}
    assert theirs.chat_template == "{{ 1 }}"


@pytest.mark.parametrize("settings", [{"eos_id": -1}, {"user_defined_symbols": ["</s>"]}])
def test_a_model_whose_text_may_become_an_end_is_refused(
    make: Make, corpus: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus / "text.txt"), model_prefix=str(tmp_path / "m"), vocab_size=120, minloglevel=2, **settings
    )
    with pytest.raises(TokenizerError, match=r"m.model has no end-of-text id .* Train it with an eos_id"):
        make(source=str(tmp_path / "m.model"))


def test_ids_that_are_left_out_count_for_the_vocabulary(make: Make, transformers_folder: Callable[..., Path]) -> None:
    folder = transformers_folder(eos_token="<|end|>")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["vocab"]["a"] = 500
    (folder / "tokenizer.json").write_text(json.dumps(content))
    info = make(source=str(folder))
    assert info.vocab_size == 501
    assert Tokenizer(info.folder).pieces()[500] == b"a"


def test_a_tokenizer_without_an_end_is_refused(make: Make, transformers_folder: Callable[..., Path]) -> None:
    with pytest.raises(TokenizerError, match="no end-of-text token"):
        make(source=str(transformers_folder()))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}", "holds no tokenizer"),
        ("{tmp}/nowhere", "does not exist"),
        ("nowhere.model", "does not exist"),
        ("{tmp}/text.model", "is not a SentencePiece model"),
        ("some-user/some-tokenizer", "no tokenizer of that name came from the hub"),
    ],
)
def test_what_is_no_tokenizer_is_named(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    if "text" in source:
        (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(TokenizerError, match=message):
        make(source=source.format(tmp=tmp_path))


def hub_error(kind: type[Exception], status: int) -> Exception:
    request = httpx.Request("GET", "https://hub.invalid")
    return kind("no", response=httpx.Response(status, request=request))  # type: ignore[call-arg]


def not_in_the_cache(cause: Exception) -> Exception:
    error = errors.LocalEntryNotFoundError("nothing cached")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("failure", "transient"),
    [
        (httpx.ReadTimeout("slow"), True),
        (not_in_the_cache(httpx.ConnectError("no route")), True),
        (not_in_the_cache(hub_error(errors.HfHubHTTPError, 503)), True),
        (hub_error(errors.HfHubHTTPError, 429), True),
        (hub_error(errors.HfHubHTTPError, 403), False),
        (hub_error(errors.RepositoryNotFoundError, 404), False),
        (not_in_the_cache(errors.OfflineModeIsEnabled("off")), False),
        (errors.HFValidationError("bad name"), False),
    ],
)
def test_only_a_hub_that_does_not_answer_is_asked_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, failure: Exception, transient: bool
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise failure

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ConnectionError if transient else TokenizerError, match=r"tokenizer\.source: ") as caught:
        make(source="user/failing")
    assert is_transient(caught.value) is transient


def test_the_hub_is_asked_once_in_a_process(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    folder = make().folder

    def download(name: str, **_: object) -> str:
        calls.append(name)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert make(source="user/asked-once") == make(source="user/asked-once")
    assert calls == ["user/asked-once"]


def test_a_folder_that_holds_only_a_model_file_is_loaded(make: Make, corpus: Path, tmp_path: Path) -> None:
    trained = make()
    shutil.copy(trained.folder / MODEL_FILE, tmp_path)
    config = CorpusConfig(paths=[str(corpus)])
    # A store of its own: the same file given by its own name has the same id.
    store = tmp_path / "store"
    loaded = make_tokenizer(
        TokenizerConfig(source=str(tmp_path)), config, Corpus.from_scan(scan(config), config), store
    )
    text = "学習 モデル\u2581\n"
    assert Tokenizer(loaded.folder).encode(text) == Tokenizer(trained.folder).encode(text)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "tokenizer.json"])
def test_a_folder_with_a_damaged_file_is_named(make: Make, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(make().folder, tmp_path / "copy")
    (folder / name).write_text("{")
    with pytest.raises(TokenizerError, match=f"copy/{name} is damaged"):
        make(source=str(folder))


def test_a_damaged_tokenizer_is_made_again(corpus: Path, tmp_path: Path) -> None:
    config = CorpusConfig(paths=[str(corpus)])
    described = Corpus.from_scan(scan(config), config)
    first = make_tokenizer(TokenizerConfig(vocab_size=400), config, described, tmp_path)
    files = verify_artifact(first.folder)["files"]
    (first.folder / MODEL_FILE).write_bytes(b"")
    assert make_tokenizer(TokenizerConfig(vocab_size=400), config, described, tmp_path) == first
    assert verify_artifact(first.folder)["files"] == files


def test_validation_files_are_not_trained_on(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("卍" * 500 + "\n")
    config = CorpusConfig(paths=[str(corpus), str(tmp_path)], validation_paths=[str(tmp_path / "secret.txt")])
    settings = TokenizerConfig(vocab_size=400, character_coverage=1)
    info = make_tokenizer(settings, config, Corpus.from_scan(scan(config), config), tmp_path / "store")
    assert len(Tokenizer(info.folder).encode("卍")) == 3  # spelt in bytes


def test_what_the_dataset_leaves_out_is_not_trained_on(tmp_path: Path) -> None:
    lines = [f"文{number}です" for number in range(500)]
    (tmp_path / "held_out.txt").write_text("卍卍卍卍\n")
    settings: dict[str, object] = {"min_bytes": 8, "max_bytes": 100, "deduplicate": True}
    settings["validation_paths"] = [str(tmp_path / "held_out.txt")]
    seen = []
    for name, more in (("plain.txt", []), ("more.txt", [*lines[:50], "卍卍卍卍", "亜亜", "唖" * 100])):
        (tmp_path / name).write_text("\n".join([*lines, *more]))
        config = CorpusConfig.model_validate({"paths": [str(tmp_path / name)], **settings})
        described = Corpus.from_scan(scan(config), config)
        info = make_tokenizer(TokenizerConfig(vocab_size=320), config, described, tmp_path / "store")
        seen.append((info.corpus_bytes, info.seen_bytes))
        other = CorpusConfig.model_validate({**config.model_dump(), "deduplicate": False})
        assert Corpus.from_scan(scan(other), other).id != described.id
    assert seen[0] == seen[1] == (sum(len(line.encode()) for line in lines),) * 2


def test_a_file_whose_remembered_hash_is_wrong_is_right_at_the_next_start(tmp_path: Path) -> None:
    path = write_corpus(tmp_path / "corpus") / "text.txt"
    os.utime(path, (1, 1))
    config = RunConfig(corpus=CorpusConfig(paths=[str(path)]), store=tmp_path / "store")
    settings = TokenizerConfig(vocab_size=400)
    open_corpus(config)
    text = bytearray(path.read_bytes())
    text[-2:] = b"x\n"
    with open(path, "r+b") as file:
        file.write(text)
    os.utime(path, (1, 1))
    with pytest.raises(FileChangedError):
        make_tokenizer(settings, config.corpus, *open_corpus(config))
    assert make_tokenizer(settings, config.corpus, *open_corpus(config))


def test_a_changed_file_behind_the_same_path_is_another_tokenizer(make: Make, tmp_path: Path) -> None:
    described = Corpus(id="", listing="", files=1, validation_files=0, stored_bytes=1)
    config = TokenizerConfig(source=str(tmp_path / "m.model"))
    ids = set()
    for vocab_size in (400, 410):
        model = (make(vocab_size=vocab_size).folder / "tokenizer.model").read_bytes()
        (tmp_path / "m.model").write_bytes(model)
        ids.add(identify(config, described))
    assert len(ids) == 2


def test_no_text_and_too_small_a_vocabulary_are_errors(tmp_path: Path) -> None:
    def train(text: bytes, vocab_size: int) -> None:
        (tmp_path / "x.txt").write_bytes(text)
        config = CorpusConfig(paths=[str(tmp_path / "x.txt")], validation_fraction=0.01)
        corpus = Corpus.from_scan(scan(config), config)
        make_tokenizer(TokenizerConfig(vocab_size=vocab_size), config, corpus, tmp_path / "store")

    with pytest.raises(CorpusError, match=r"is CP932 text, not UTF-8"):
        train("日本語の文章。\n".encode("shift_jis") * 10, 400)
    kanji = "\n".join(chr(code) for code in range(0x4E00, 0x4E00 + 2000))
    with pytest.raises(TokenizerError, match=r"could not train 300 pieces .*tokenizer.vocab_size"):
        train(kanji.encode(), 300)
    assert list((tmp_path / "store" / "tokenizers").glob("[!.]*")) == []


@pytest.mark.parametrize("model_type", ["bpe", "byte_bpe"])
def test_real_text_is_exact_in_both_directions(shared_data: Path, tmp_path: Path, model_type: str) -> None:
    config = CorpusConfig(paths=[str(shared_data / "ja.jsonl.gz")])
    corpus = Corpus.from_scan(scan(config), config)
    settings = TokenizerConfig.model_validate({"vocab_size": 8000, "model_type": model_type})
    info = make_tokenizer(settings, config, corpus, prepare_store(tmp_path))
    own, theirs = Tokenizer(info.folder), in_transformers(info)
    for name in ("ja", "en"):
        with gzip.open(shared_data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            texts = [json.loads(line)["text"] for line in file]
        ids = [own.encode(text) for text in texts]
        assert [own.decode(one) for one in ids] == texts
        assert theirs(texts, add_special_tokens=False)["input_ids"] == ids
        assert theirs.batch_decode(ids) == texts


def test_line_breaks_and_indents_are_trained_as_pieces(tmp_path: Path) -> None:
    texts = ["def run(self):\n    if self.ready:\n        return 1\n\treturn 2\r\n" * 3] * 50
    proto, seen = train_model(TokenizerConfig(vocab_size=400), texts)
    pieces = {piece.piece for piece in proto.pieces if piece.type == piece.NORMAL}
    assert {"\n    ", "\n        "} <= pieces
    assert not any(mark in piece for piece in pieces for mark in "\u2581\ufdd0\ufdd1")
    assert seen == sum(len(text.encode()) for text in texts)
    samples = [*texts[:1], "\n \n\t\u2581 \ufdd0\0\u2585 x", "\n" * 200]
    save_model(proto, tmp_path, samples)
    theirs = open_in_transformers(tmp_path)
    assert [theirs.decode(theirs.encode(text), clean_up_tokenization_spaces=False) for text in samples] == samples
    ours = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert len(ours.encode("\n        return 1")) < len("return 1")
    assert ours.decode(ours.encode("\n \t\u2581\ufdd0 x\n")) == "\n \t\u2581\ufdd0 x\n"


LONG_RUNS = {
    "one letter": "a" * 300_000,
    "DNA": "".join("ACGT"[(i * i // 7) % 4] for i in range(300_000)),
    "base64": base64.b64encode(bytes((i * i) % 251 for i in range(200_000))).decode(),
    "spaces": " " * 300_000,
}


@pytest.mark.parametrize("name", LONG_RUNS)
def test_byte_bpe_trains_on_words_without_end_in_seconds(name: str, tmp_path: Path) -> None:
    text = LONG_RUNS[name]
    start = time.process_time()
    about = train_byte_bpe(TokenizerConfig(model_type="byte_bpe", vocab_size=400), [text], tmp_path)
    assert time.process_time() - start < 20
    assert about["seen_bytes"] == len(text)


def test_a_signal_ends_the_training_of_a_tokenizer_at_once(tmp_path: Path) -> None:
    program = (
        "import random; from pathlib import Path; from lmcore.tokenizer.byte_bpe import train_byte_bpe; "
        "from lmcore.settings.config import TokenizerConfig; draw = random.Random(0); "
        "texts = [''.join(draw.choices('abcdefgh', k=200)) for _ in range(100_000)]; print('begins', flush=True); "
        f"train_byte_bpe(TokenizerConfig(model_type='byte_bpe', vocab_size=30_000), texts, Path({str(tmp_path)!r}))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(2)
        child.send_signal(signal.SIGINT)
        start = time.monotonic()
        child.wait(60)
    assert time.monotonic() - start < 15  # a thread that computes is not waited for; the machine may be busy


@pytest.mark.parametrize("model_type", ["bpe", "unigram", "byte_bpe"])
def test_the_pieces_of_a_text_are_its_bytes(make: Make, model_type: str) -> None:
    tokenizer = Tokenizer(make(model_type=model_type).folder)
    text, pieces = "これは 卍😀\n english\u2581é", tokenizer.pieces()
    assert b"".join(pieces[token] for token in tokenizer.encode(text)) == text.encode()
    assert [pieces[token] for token in (0, 2, 3, 4, 5)] == [b""] * 5
    assert len(pieces) == tokenizer.vocab_size
