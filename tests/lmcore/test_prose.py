"""What a document in a .txt is, by its first lines."""

import json
import textwrap
from pathlib import Path

import pytest

from lmcore.config import CorpusConfig, RunConfig, TokenizerConfig
from lmcore.corpus import open_corpus, scan
from lmcore.prose import kind_of_text
from lmcore.tokenization import tokenize
from lmcore.tokenizer import make_tokenizer

SENTENCE = (
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。"
    "何でも薄暗いじめじめした所でニャーニャー泣いて居た事だけは記憶して居る。"
)
WRAPPED_JA = [(SENTENCE * 40)[at : at + 40] for at in range(0, 2400, 40)]
ENGLISH = (
    "It was the best of times, it was the worst of times, it was the age of wisdom. "
    "We had everything before us, and we had nothing before us. So it went. "
) * 30
WRAPPED_EN = textwrap.wrap(ENGLISH, 70)
NOVEL = "".join("".join(f"　{SENTENCE}\n" for _ in range(4)) + "\n" for _ in range(20))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (NOVEL, "paragraphs"),
        ("\n".join(WRAPPED_JA), "paragraphs"),
        ("\r\n".join(WRAPPED_JA), "paragraphs"),
        ("\r".join(WRAPPED_EN), "paragraphs"),
        ("\n\n".join("\n".join(WRAPPED_EN[at : at + 5]) for at in range(0, 40, 5)), "paragraphs"),
        (f"{SENTENCE}\n" * 100, "txt"),
        (f"{SENTENCE}\n\n" * 100, "txt"),  # a line between blank ones is the same document either way
        ("".join(f"これは{n}番の文です。\n" for n in range(200)), "txt"),
        (
            "".join(f"2026-11-{n % 28:02} 12:00:00 INFO request {n} took {n * 7 % 90} ms. Done\n" for n in range(200)),
            "txt",
        ),
        ("".join(f"{n:06},name {n:04},tokyo,{n * 13 % 1000:04}\n" for n in range(200)), "txt"),
        ("".join(f"word{n}\n" for n in range(2000)), "txt"),
        ("heading\n\n" + "".join(f"record {n}\n" for n in range(2000)), "txt"),
        ("", "txt"),
        ("one line", "txt"),
    ],
)
def test_the_unit_is_what_the_lines_are(text: str, kind: str) -> None:
    assert kind_of_text(text.encode(), True) == kind


def test_a_growing_file_is_never_read_otherwise_once_it_is_beyond_the_beginning() -> None:
    content = NOVEL.encode()[: 2**14 + 1]
    assert {kind_of_text(content + more, False) for more in (b"", b"one\n" * 20_000, NOVEL.encode() * 5)} == {
        "paragraphs"
    }


def test_the_choice_is_each_files_own_and_an_explicit_setting_stays(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text(NOVEL)
    (tmp_path / "lines.txt").write_text(f"{SENTENCE}\n" * 100)
    config = CorpusConfig(paths=[str(tmp_path)])
    assert {Path(file.path).name: file.kind for file in scan(config).files} == {
        "novel.txt": "paragraphs",
        "lines.txt": "txt",
    }
    line = config.model_copy(update={"document": "line"})
    assert {file.kind for file in scan(line).files} == {"txt"}


def test_what_was_chosen_is_in_the_ledger_and_short_documents_are_said(tmp_path: Path) -> None:
    texts, store = tmp_path / "texts", tmp_path / "store"
    texts.mkdir()
    (texts / "novel.txt").write_text("".join(f"　{n}。{SENTENCE}\n　続き。\n\n" for n in range(60)))
    (texts / "lines.txt").write_text("".join(f"短い文の{n}番です。\n" for n in range(400)))
    config = RunConfig(corpus=CorpusConfig(paths=[str(texts)]), tokenizer=TokenizerConfig(vocab_size=500), store=store)
    corpus, folder = open_corpus(config)
    found = tokenize(config.corpus, corpus, make_tokenizer(config.tokenizer, config.corpus, corpus, folder), folder)
    ledger = json.loads((found.folder / "manifest.json").read_bytes())["ledger"]
    assert ledger["documents_by_unit"] == {"line": 400, "paragraph": 60}
    assert any("set corpus.document to paragraph" in warning for warning in found.warnings)
