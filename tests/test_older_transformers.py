"""Exports open in transformers 4.57 too, and in what is built on it: the same ids, text and logits as here.

It is installed once, beside the packages that are here, into the folder LM_TRANSFORMERS_4 or pytest's cache.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers

from lmcore.model.export import export
from lmcore.settings.config import RunConfig
from tests.conftest import prepare, tiny_config, train_and_evaluate, write_corpus

PACKAGES = ("transformers==4.57.6", "tokenizers==0.22.2", "huggingface-hub==0.36.2")
PIP = (sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--retries", "1", "--timeout", "10", "--target")
TEXTS = [
    "学習モデル",
    "def main():\n    return 1\n",
    "  two  spaces ",
    "😀 é ＡＢＣ",
    "a </s> <s>b",
    "\u2581x",
    "ﾃｽﾄ①",
    "が",
]

PROBE = """
import json, sys
import torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
transformers.logging.set_verbosity_error()
texts, folders = json.loads(sys.argv[1])
for folder in folders:
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = [tokenizer.encode(text) for text in texts]
    with torch.no_grad():
        logits = model(torch.arange(16)[None]).logits[0].tolist()
    found = {
        "ids": ids,
        "texts": [tokenizer.decode(each, clean_up_tokenization_spaces=False) for each in ids],
        "logits": logits,
        "roles": [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.eos_token_id],
        "special": sorted(tokenizer.all_special_tokens),
        "own": tokenizer.convert_tokens_to_ids("<|user|>"),
        "own in a prompt": tokenizer.encode("<|user|>", split_special_tokens=False),
        "longest": tokenizer.model_max_length,
        "size": len(tokenizer),
    }
    print(json.dumps(found))
"""


@pytest.fixture(scope="session")
def older(request: pytest.FixtureRequest) -> Path:
    """A folder that holds transformers 4.57 and what it needs in other versions than ours."""
    assert request.config.cache is not None
    cached = request.config.cache.mkdir("transformers-4.57")
    folder = Path(os.environ.get("LM_TRANSFORMERS_4") or cached)
    if not (folder / "transformers").is_dir():
        made = subprocess.run([*PIP, str(folder), *PACKAGES], capture_output=True, text=True, timeout=120)
        if made.returncode:
            pytest.skip(f"transformers 4.57 could not be installed: {made.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export of every kind of tokenizer, each with another architecture, and one that normalizes."""
    folder = tmp_path_factory.mktemp("exports")
    corpus = write_corpus(folder / "corpus")
    theirs = save_theirs(corpus, folder / "theirs")
    settings: dict[str, dict[str, Any]] = {
        "bpe": {"model_type": "bpe", "special_tokens": ["<|user|>"]},
        "unigram": {"model_type": "unigram", "special_tokens": ["<|user|>"]},
        "byte_bpe": {"model_type": "byte_bpe"},
        "loaded": {"source": str(theirs)},
    }
    return {
        f"{kind}-{form}": make(folder, corpus, settings[kind], architecture, form)
        for kind, architecture, form in (
            ("bpe", "gpt2", ""),
            ("bpe", "llama", "NFKC"),
            ("unigram", "qwen3", ""),
            ("unigram", "gpt2", "NFKC"),
            ("byte_bpe", "llama", ""),
            ("byte_bpe", "qwen3", "NFC"),
            ("loaded", "gpt2", ""),
            ("loaded", "llama", "NFKC"),
        )
    }


def save_theirs(corpus: Path, folder: Path) -> Path:
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    bpe.train([str(corpus / "text.txt")], vocab_size=300, special_tokens=["<|end|>"], show_progress=False)
    transformers.PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|end|>").save_pretrained(folder)
    return folder


def make(folder: Path, corpus: Path, tokenizer: dict[str, Any], architecture: str, form: str) -> Path:
    content = tiny_config(corpus, folder / "store", max_steps=2).model_dump()
    content["tokenizer"] |= tokenizer
    content["model"]["architecture"] = architecture
    content["corpus"]["normalize"] = form
    prepared = prepare(RunConfig.model_validate(content))
    made = train_and_evaluate(prepared, prepared.run())
    return export(made.training, made.evaluation).model_dir


Probe = Callable[[list[Path]], list[dict[str, Any]]]


def probe(folders: list[Path], packages: Path | None = None) -> list[dict[str, Any]]:
    arguments = json.dumps([TEXTS, [str(folder) for folder in folders]])
    environment = os.environ | ({"PYTHONPATH": str(packages)} if packages else {})
    done = subprocess.run(
        [sys.executable, "-c", PROBE, arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_ids_text_and_logits_are_those_of_here(older: Path, exports: dict[str, Path]) -> None:
    here, there = (probe(list(exports.values()), packages) for packages in (None, older))
    for name, one, other in zip(exports, here, there, strict=True):
        assert {key for key in one if one[key] != other[key]} <= ({"texts"} if name.startswith("unigram") else set())
        assert other["longest"] == 16, name
        if name in ("bpe-", "byte_bpe-", "loaded-"):
            assert other["texts"] == TEXTS, name
        if name.startswith(("bpe", "unigram")):
            assert other["own"] == 6 == other["own in a prompt"][0], name


def test_rotary_positions_are_those_that_were_trained(older: Path, tmp_path: Path, exports: dict[str, Path]) -> None:
    from lmcore.tokenizer.export_files import write_config

    folders = []
    for number, rope in enumerate(
        (
            {"rope_type": "default", "rope_theta": 500_000.0},
            {"rope_type": "linear", "rope_theta": 20_000.0, "factor": 4.0},
        )
    ):
        shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
        shape |= {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
        config = transformers.LlamaConfig(**shape, rope_parameters=rope)
        folder = tmp_path / str(number)
        transformers.LlamaForCausalLM(config).save_pretrained(folder)
        write_config(folder / "config.json")
        for file in exports["byte_bpe-"].glob("tokenizer*"):
            (folder / file.name).write_bytes(file.read_bytes())
        folders.append(folder)
    for one, other in zip(probe(folders), probe(folders, older), strict=True):
        assert one["logits"] == other["logits"]
