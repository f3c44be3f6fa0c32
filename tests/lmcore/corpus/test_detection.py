"""What a document in a .txt is, by its first lines."""

import json
import re
import textwrap
from pathlib import Path

import pytest

from lmcore.corpus.detection import text_kind
from lmcore.corpus.listing import Corpus, open_corpus
from lmcore.corpus.scan import scan
from lmcore.dataset.tokenization import tokenize
from lmcore.settings.config import CorpusConfig, RunConfig, TokenizerConfig
from lmcore.tokenizer.make import make_tokenizer
from lmcore.tokenizer.tokenizer import TokenizerInfo

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
LONG = f"　{SENTENCE}"
CHAPTER = "".join(  # wrapped at 40 characters, and two paragraphs of three are one line
    f"{LONG[:40]}\n{LONG[40:]}\n\n" if n % 3 == 0 else f"「{n}番の返事です。」\n\n" for n in range(60)
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (NOVEL, "paragraphs"),
        ("\n".join(WRAPPED_JA), "paragraphs"),
        ("\r\n".join(WRAPPED_JA), "paragraphs"),
        ("\r".join(WRAPPED_EN), "paragraphs"),
        ("\n\n".join("\n".join(WRAPPED_EN[at : at + 5]) for at in range(0, 40, 5)), "paragraphs"),
        (f"{SENTENCE}\n" * 100, "txt"),
        (CHAPTER, "paragraphs"),
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
    assert text_kind(text.encode(), True) == kind


def test_a_growing_file_is_never_read_otherwise_once_it_is_beyond_the_beginning() -> None:
    content = NOVEL.encode()[: 2**14 + 1]
    assert {text_kind(content + more, False) for more in (b"", b"one\n" * 20_000, NOVEL.encode() * 5)} == {"paragraphs"}


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


def test_what_was_chosen_is_in_ledger_and_log_and_short_lines_are_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    texts, store = tmp_path / "texts", tmp_path / "store"
    texts.mkdir()
    (texts / "novel.txt").write_text("".join(f"　{n}。{SENTENCE}\n　続き。\n\n" for n in range(60)))
    (texts / "lines.txt").write_text("".join(f"短い文の{n}番です。\n" for n in range(400)))
    config = RunConfig(corpus=CorpusConfig(paths=[str(texts)]), tokenizer=TokenizerConfig(vocab_size=500), store=store)
    corpus, folder = open_corpus(config)
    found = tokenize(config.corpus, corpus, make_tokenizer(config.tokenizer, config.corpus, corpus, folder), folder)
    ledger = json.loads((found.folder / "manifest.json").read_bytes())["ledger"]
    assert ledger["documents_by_unit"] == {"line": 400, "paragraph": 60}
    assert "(corpus.document = auto): paragraphs in 1 file (novel.txt); lines in 1 file (lines.txt)" in caplog.text
    assert re.search(r"documents that are lines average \d+ tokens, as in .*lines\.txt: ", caplog.text)
    assert found.warnings == []  # that they are lines was found by looking at them
    line = config.corpus.model_copy(update={"document": "line"})
    tokenizer = TokenizerInfo.open(folder / "tokenizers" / found.tokenizer_id)
    [warning] = tokenize(line, Corpus.from_scan(scan(line), line), tokenizer, folder).warnings
    assert "set corpus.document to paragraph or file" in warning
