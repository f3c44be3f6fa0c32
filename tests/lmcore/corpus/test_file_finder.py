"""Which files are read, and what programs keep for themselves."""

import json
import os
import unicodedata
from pathlib import Path

import pytest

from lmcore.corpus.listing import open_corpus
from lmcore.corpus.scan import scan
from lmcore.dataset.tokenization import tokenize
from lmcore.errors import CorpusError
from lmcore.settings.config import CorpusConfig, RunConfig, TokenizerConfig
from lmcore.tokenizer.make import make_tokenizer

TEXT = "".join(f"{n}番の文です。これは短い。\n" for n in range(200))


def names(*paths: str | Path, **settings: object) -> list[str]:
    config = CorpusConfig.model_validate({"paths": [str(path) for path in paths], **settings})
    return sorted(os.path.basename(file.path) for file in scan(config).files)


def put(path: Path, content: str = "text\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_the_same_command_three_times_in_the_corpus_folder_gives_one_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LM_STORE", raising=False)
    put(tmp_path / "a.txt", TEXT)
    caplog.set_level("INFO")
    ids = set()
    for _ in range(3):
        config = RunConfig(corpus=CorpusConfig(paths=["."]), tokenizer=TokenizerConfig(vocab_size=400))
        corpus, store = open_corpus(config)
        tokenizer = make_tokenizer(config.tokenizer, config.corpus, corpus, store)
        ids.add((corpus.id, tokenizer.id, tokenize(config.corpus, corpus, tokenizer, store).id))
    assert len(ids) == 1
    assert f"{tmp_path}/store is left out: it is a store of this program" in caplog.text


def test_texts_inside_the_store_are_refused_before_anything_is_made(tmp_path: Path) -> None:
    put(tmp_path / "a.txt", TEXT)
    with pytest.raises(CorpusError, match=r"a\.txt lies in the store .*Give another --store"):
        open_corpus(RunConfig(corpus=CorpusConfig(paths=[str(tmp_path)]), store=tmp_path))
    assert not (tmp_path / "format.json").exists()


FOLDERS = {
    "a store of this program": {"format.json": json.dumps({"format_version": 1}), "runs/x/report.md": "# report"},
    "a part of a store of this program": {"manifest.json": json.dumps({"kind": "model", "files": {}}), "README.md": ""},
    "an exported model": {"config.json": "{}", "model.safetensors": "", "merges.txt": "a b\n", "README.md": "# card"},
    "a training run": {"metrics.jsonl": "{}\n", "config.json": "{}", "report.md": ""},
    "a virtual environment": {"pyvenv.cfg": "", "lib/python3.11/site-packages/x/top_level.txt": "x"},
    "a Prefect home": {"prefect.db": "", "storage/a.json": "{}\n"},
    "a git repository's own folder": {"HEAD": "", "objects/a.txt": "", "refs/b.txt": ""},
}


@pytest.mark.parametrize("what", FOLDERS)
def test_what_programs_keep_for_themselves_is_left_out(tmp_path: Path, what: str) -> None:
    put(tmp_path / "texts/own.txt")
    for name, content in FOLDERS[what].items():
        put(tmp_path / "texts/inner/folder" / name, content)
    config = CorpusConfig(paths=[str(tmp_path / "texts")])
    assert names(tmp_path / "texts") == ["own.txt"]
    assert scan(config).unread.folders == {str(tmp_path / "texts/inner/folder"): what}
    with pytest.raises(CorpusError, match=f"folder is {what}"):
        names(tmp_path / "texts/inner/folder")


def test_hidden_folders_and_compiled_python_are_left_out_and_said(tmp_path: Path) -> None:
    for name in ("own.txt", ".git/a.txt", ".venv/b.txt", "__pycache__/c.txt", "node_modules/d.md"):
        put(tmp_path / name)
    put(tmp_path / "inner/__pycache__/d.txt")
    for number in range(7):
        put(tmp_path / f"run{number}/metrics.jsonl"), put(tmp_path / f"run{number}/config.json")
    assert names(tmp_path) == ["own.txt"]
    unread = scan(CorpusConfig(paths=[str(tmp_path)])).unread
    assert unread.folder_summary() == [
        "folders left out: 2 (hidden), 2 (compiled Python), 1 (packages of node)",
        *(f"{tmp_path}/run{number} is left out: it is a training run" for number in range(5)),
        "2 more folders of this kind left out: a training run",
    ]
    left_out = {path for path, what in unread.folders.items() if what != "a training run"}
    assert sorted(map(os.path.basename, left_out)) == [".git", ".venv", *["__pycache__"] * 2, "node_modules"]


def test_patterns_match_without_regard_to_case(tmp_path: Path) -> None:
    for name in ("A.TXT", "b.Md", "C.JSONL", "Draft.txt"):
        put(tmp_path / name, '{"text": "x"}\n')
    assert names(tmp_path, exclude=["draft*"]) == ["A.TXT", "C.JSONL", "b.Md"]
    assert names(tmp_path, include=["*.Txt"]) == ["A.TXT", "Draft.txt"]


def test_a_folder_with_the_characters_of_a_pattern_is_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "dir [v1]" / "a.txt")
    put(tmp_path / "dir [v1]" / "what?" / "b.txt")
    assert names(tmp_path / "dir [v1]" / "*.txt") == ["a.txt"]
    assert names(tmp_path / "dir [v1]" / "what?" / "*.txt") == ["b.txt"]
    assert names(tmp_path / "dir [v1]" / "**" / "*.txt") == ["a.txt", "b.txt"]
    assert names(tmp_path / "dir*" / "a.txt") == ["a.txt"]


@pytest.mark.parametrize(("here", "given"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFD", "NFD")])
def test_a_name_in_another_unicode_form_is_found(tmp_path: Path, here: str, given: str) -> None:
    folder, name = "ガイドブック", "がぎぐ.txt"
    put(tmp_path / unicodedata.normalize(here, folder) / unicodedata.normalize(here, name))
    for pattern in (f"{folder}/{name}", folder, f"{folder}/*.txt", f"{folder}/が*.txt"):
        [found] = names(tmp_path / unicodedata.normalize(given, pattern))
        assert found == unicodedata.normalize(here, name)
    assert len(names(tmp_path, include=[unicodedata.normalize(given, "が*")])) == 1


def test_a_name_that_is_too_long_is_one_line(tmp_path: Path) -> None:
    put(tmp_path / ("x" * 251 + ".txt"))
    assert names(tmp_path) == ["x" * 251 + ".txt"]
    with pytest.raises(CorpusError, match=r"corpus.paths: .*: file name too long"):
        names(tmp_path / ("x" * 300 + ".txt"))
