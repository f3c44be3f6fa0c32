"""The report counts what a person would count, and never more than it says."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lmcore.report.tokenizer_report
from lmcore.corpus.listing import Corpus
from lmcore.corpus.scan import scan
from lmcore.dataset.manifest import Dataset
from lmcore.dataset.shards import Shard, write_shard
from lmcore.dataset.tokenization import tokenize
from lmcore.report.tokenizer_report import TokenizerReport, dataset_report, tokenizer_report
from lmcore.settings.config import CorpusConfig, TokenizerConfig
from lmcore.store.layout import prepare_store
from lmcore.tokenizer.make import make_tokenizer
from lmcore.tokenizer.tokenizer import Tokenizer

TEXTS = {
    "Japanese": ["これは日本語の文です。", "カタカナと漢字が混ざる model 文章。"],
    "Chinese": ["中文没有假名只有汉字"],
    "Latin": ["plain english, 12 words", "une phrase étrange"],
    "Cyrillic": ["русский текст"],
    "Hangul": ["한국어 문장입니다"],
    "Greek": ["ελληνικά"],
    "Arabic": ["نص عربي"],
    "digits and symbols": ["12345 + 67890 = ?", ""],
}


@pytest.fixture(scope="module", params=["bpe", "unigram", "byte_bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("report")
    lines = [text for texts in TEXTS.values() for text in texts] * 40
    (folder / "x.txt").write_text("\n".join(f"{line}{n}" for n, line in enumerate(lines)), encoding="utf-8")
    config = CorpusConfig(paths=[str(folder / "x.txt")])
    settings = TokenizerConfig.model_validate({"vocab_size": 450, "model_type": request.param})
    return Tokenizer(make_tokenizer(settings, config, Corpus.from_scan(scan(config), config), folder / "store").folder)


def write(tokenizer: Tokenizer, path: Path, texts: list[str]) -> Shard:
    tokens, lengths = tokenizer.encode_flat([text.encode() for text in texts])
    text_bytes = np.array([len(text.encode()) for text in texts])
    nothing = np.zeros(len(texts), np.int64)
    hashes = nothing.astype(np.uint64)
    write_shard(path, tokens, lengths, text_bytes, nothing, hashes, tokenizer_id=tokenizer.id, eos_id=tokenizer.eos_id)
    return Shard(path)


def test_every_document_counts_for_its_source(tokenizer: Tokenizer, tmp_path: Path) -> None:
    shards = [(name, write(tokenizer, tmp_path / name, texts)) for name, texts in TEXTS.items()]
    report = tokenizer_report(tokenizer, [*shards, ("empty", write(tokenizer, tmp_path / "empty", []))], 10**6)
    for name, texts in TEXTS.items():
        tokens = sum(len(tokenizer.encode(text)) for text in texts)
        assert report.sources[name] == (len(texts), tokens, len("".join(texts).encode())), name
    assert report.sources.keys() == TEXTS.keys()
    assert report.tokens == sum(tokens for _, tokens, _ in report.sources.values())
    assert report.text_bytes == sum(len(text.encode()) for texts in TEXTS.values() for text in texts)
    assert "| Hangul | 1 |" in report.markdown()
    assert report.unknown_tokens == 0


def test_the_pieces_of_a_text_are_its_bytes(tokenizer: Tokenizer) -> None:
    text, pieces = "これは 卍😀\n english\u2581é", tokenizer.pieces()
    assert b"".join(pieces[token] for token in tokenizer.encode(text)) == text.encode()
    assert [pieces[token] for token in (0, 2, 3, 4, 5)] == [b""] * 5
    assert len(pieces) == tokenizer.vocab_size


def test_characters_without_a_piece_are_counted_as_parts(tokenizer: Tokenizer, tmp_path: Path) -> None:
    report = tokenizer_report(tokenizer, [("web", write(tokenizer, tmp_path / "x", ["卍卍", "12"]))], 0)
    assert report.partial_tokens == len(tokenizer.encode("卍卍")) >= 4
    assert report.used_pieces == len({*tokenizer.encode("卍卍"), *tokenizer.encode("12"), tokenizer.eos_id})
    texts = [text for text, _ in report.longest]
    assert [len(text) for text in texts] == sorted(map(len, texts), reverse=True)


def test_only_the_first_tokens_are_counted_and_it_says_so(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = "web", write(tokenizer, tmp_path / "x", ["english"] * 10)
    of_one = len(tokenizer.encode("english"))
    monkeypatch.setattr(lmcore.report.tokenizer_report, "MOST_TOKENS", 15 * (of_one + 1))
    report = tokenizer_report(tokenizer, [shard, shard, shard], 30 * (of_one + 1))
    assert (report.documents, report.tokens) == (15, 15 * of_one)
    part = f"the first {15 * of_one:,} tokens in 15 documents of {30 * (of_one + 1):,} tokens."
    assert part in report.markdown()
    whole = tokenizer_report(tokenizer, [shard], 10 * (of_one + 1))
    assert f"Counted over {10 * of_one:,} tokens in 10 documents.\n" in whole.markdown()


def test_the_page_of_a_dataset_has_the_figures_of_its_manifest(corpus: Path, tmp_path: Path) -> None:
    store, config = prepare_store(tmp_path), CorpusConfig(paths=[str(corpus)])
    described = Corpus.from_scan(scan(config), config)
    info = make_tokenizer(TokenizerConfig(vocab_size=400), config, described, store)
    dataset: Dataset = tokenize(config, described, info, store)
    report = dataset_report(dataset.folder, info.id)
    assert report.documents == dataset.documents + dataset.validation_documents
    assert report.tokens + report.documents == report.all_tokens == dataset.tokens + dataset.validation_tokens
    assert report.text_bytes == dataset.text_bytes + dataset.validation_text_bytes
    assert report.sources.keys() == {"corpus"}


def test_a_piece_cannot_leave_the_page(check_golden: Callable[[str, str], None]) -> None:
    report = TokenizerReport(
        2, 10, 35, 99, {"a | b": (1, 5, 15), "c": (1, 5, 20)}, 1, 0, 400, 20, [("```\n# x |", 3), (" a", 1200)]
    )
    check_golden("tokenizer_report.md", report.markdown() + "\n")
