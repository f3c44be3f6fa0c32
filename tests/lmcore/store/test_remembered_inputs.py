"""What a task says has changed, and that its notes are hints only."""

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.corpus.listing import open_corpus
from lmcore.store.remembered_inputs import Inputs, remember, remember_files, what_changed
from tests.conftest import tiny_config, write_corpus


def inputs(store: Path, **values: object) -> Inputs:
    return {"store": str(store), **values}


def test_the_nearest_of_the_last_results_is_compared(tmp_path: Path) -> None:
    for rate, model in ((0.001, "gpt2"), (0.002, "llama"), (0.003, "llama")):
        remember("train", inputs(tmp_path, train={"rate": rate}, model=model))
    said = what_changed("train", inputs(tmp_path, train={"rate": 0.004}, model="gpt2"))
    assert said.startswith("train.rate is 0.004, was 0.001 (last started ")


def test_many_changes_are_counted_and_long_values_cut(tmp_path: Path) -> None:
    remember("train", inputs(tmp_path, a=1, b="x", c=True, d=None, e=5))
    said = what_changed("train", inputs(tmp_path, a=2, b="y" * 100, c=False, d=3))
    assert "a is 2, was 1, b is yyy" in said
    assert "..., was x, c is false, was true and 2 more (last started " in said


def test_a_rename_is_told_only_where_the_text_is_the_same(tmp_path: Path) -> None:
    remember("tokenize", inputs(tmp_path, corpus="a", **{"corpus.listing": "0" * 16}))
    renamed, other = (inputs(tmp_path, corpus=name, **{"corpus.listing": "1" * 16}) for name in ("a", "b"))
    assert what_changed("tokenize", renamed).startswith("corpus.listing changed (")
    assert what_changed("tokenize", other).startswith("the corpus changed (")


def test_hashes_are_not_shown(tmp_path: Path) -> None:
    remember("train", inputs(tmp_path, weights="0" * 32, run="a"))
    assert what_changed("train", inputs(tmp_path, weights="1" * 32, run="b")).startswith(
        "run is b, was a, weights changed"
    )


def test_the_same_inputs_again_are_said_to_be_so(tmp_path: Path) -> None:
    assert what_changed("train", inputs(tmp_path, a=1)) == "nothing of its kind is in this store yet"
    remember("train", inputs(tmp_path, a=1))
    assert what_changed("train", inputs(tmp_path, a=1)).startswith("no result is recorded of its last start")


_FILES = st.dictionaries(st.text("abc/.", min_size=1, max_size=3), st.sampled_from(["1", "2", "3"]), min_size=1)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # the files are replaced
@given(_FILES, _FILES)
def test_every_file_is_counted_once(tmp_path: Path, before: dict[str, str], after: dict[str, str]) -> None:
    remember_files(tmp_path, "before", {"files": before, "validation_files": {}})
    remember_files(tmp_path, "after", {"files": after, "validation_files": {}})
    remember("tokenize", inputs(tmp_path, corpus="before"))
    said = what_changed("tokenize", inputs(tmp_path, corpus="after"))
    words = said.partition(" (last")[0].removeprefix("the corpus changed: files ").split(", ")
    counts = {what: int(count) for count, what in (word.split(" ") for word in words if word[0].isdigit())}
    assert counts.get("new", 0) == len(set(after) - set(before))
    assert counts.get("gone", 0) == len(set(before) - set(after))
    assert counts.get("changed", 0) == sum(before[path] != after[path] for path in set(before) & set(after))
    assert bool(counts) != ("read or split in another way" in said)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'[{"inputs": 3, "time": "x"}]', b'{"a": 1}', b"\xff"])
def test_damaged_notes_cost_the_reason_only(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "inputs").mkdir()
    (tmp_path / "inputs/train.json").write_bytes(content)
    assert "nothing of its kind" in what_changed("train", inputs(tmp_path, a=1))
    remember("train", inputs(tmp_path, a=1))
    assert "a is 2, was 1" in what_changed("train", inputs(tmp_path, a=2))


def test_notes_that_cannot_be_written_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "inputs").write_text("a file stands here")
    remember("train", inputs(tmp_path, a=1))
    remember_files(tmp_path, "corpus", {"files": {"a": "1"}})
    assert "nothing of its kind" in what_changed("train", inputs(tmp_path, a=2))


def test_notes_do_not_pile_up(tmp_path: Path) -> None:
    for number in range(50):
        remember("train", inputs(tmp_path, a=number))
        remember_files(tmp_path, str(number), {"files": {"a": str(number)}})
    assert len(json.loads((tmp_path / "inputs/train.json").read_bytes())) == 20
    assert len(list((tmp_path / "inputs").glob("files-*"))) == 20
    assert "a is 50, was 49" in what_changed("train", inputs(tmp_path, a=50))


def test_a_look_at_the_corpus_notes_its_files(tmp_path: Path) -> None:
    config = tiny_config(write_corpus(tmp_path / "corpus"), tmp_path / "store")
    corpus, store = open_corpus(config)
    noted = json.loads((store / f"inputs/files-{corpus.id}.json").read_bytes())
    assert list(noted["files"]) == [str(tmp_path / "corpus/text.txt")]
