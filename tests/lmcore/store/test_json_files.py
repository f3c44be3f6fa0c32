"""What is written is JSON that every program reads; a torn line costs that line, and no other is lost or joined."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.errors import StoreError
from lmcore.runs.metrics import MetricsWriter, read_metrics
from lmcore.runs.scores import Evaluation
from lmcore.store.artifacts import manifest_bytes
from lmcore.store.json_files import append_line, from_json, read_lines, to_json, write_lines
from tests.conftest import Prepared, finished

ROWS = st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers(-9, 9)), max_size=4)


@given(rows=ROWS, data=st.data())
def test_a_line_that_a_crash_tore_is_left_out_and_overwritten(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("lines") / "rows.jsonl"
    for row in rows:
        append_line(path, row)
    content = path.read_bytes() if rows else b""
    torn = json.dumps({"torn": "日本"}, ensure_ascii=False).encode()
    cut = data.draw(st.integers(0, len(torn)))
    path.write_bytes(content + torn[:cut])
    kept = [*rows, {"torn": "日本"}] if cut == len(torn) else rows
    assert read_lines(path) == kept
    append_line(path, {"next": 1}, synced=False)
    assert read_lines(path) == [*kept, {"next": 1}]
    assert len(path.read_bytes().split(b"\n")) == len(kept) + 2


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_damaged_line_is_named_unless_it_may_be_skipped(tmp_path: Path, line: int) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"row": number} for number in range(3)])
    lines = path.read_bytes().splitlines(keepends=True)
    lines[line] = b"{\n"
    path.write_bytes(b"".join(lines))
    with pytest.raises(StoreError, match=rf"rows.jsonl is damaged in line {line + 1}: .*Restore the file"):
        read_lines(path)
    assert [row["row"] for row in read_lines(path, skip_damaged=True)] == [n for n in range(3) if n != line]


def test_a_missing_file_has_no_rows(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "rows.jsonl") == []


FIGURES = st.none() | st.integers() | st.floats() | st.text()
NAMES = st.text().filter(lambda name: not name.endswith("_is"))


def strict(text: str | bytes) -> Any:
    """Parse as other languages do: NaN and Infinity are refused."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_figure_that_is_not_finite_is_null_and_a_word() -> None:
    text = to_json({"loss": math.nan, "sources": {"web": math.inf, "wiki": -math.inf}, "step": 3})
    assert strict(text) == {
        "loss": None,
        "sources": {"web": None, "wiki": None, "web_is": "Infinity", "wiki_is": "-Infinity"},
        "step": 3,
        "loss_is": "NaN",
    }
    assert strict(to_json([1.5, math.inf])) == [1.5, None]


def is_listed(value: Any) -> bool:
    """In a list there is no place for the word."""
    return not isinstance(value, float) or math.isfinite(value)


@given(st.recursive(FIGURES, lambda inner: st.dictionaries(NAMES, inner) | st.lists(inner.filter(is_listed))))
def test_everything_comes_back(content: Any) -> None:
    text = to_json({"content": content})
    strict(text)
    assert repr(from_json(text)) == repr({"content": content})


def test_what_python_itself_writes_is_read_too() -> None:
    assert repr(from_json('{"loss": NaN, "best": -Infinity}')) == "{'loss': nan, 'best': -inf}"


def test_a_word_without_its_figure_stays_a_word() -> None:
    content = {"what_is": "NaN", "loss": 1.0, "loss_is": "NaN"}
    assert from_json(json.dumps(content)) == content


def test_metrics_records_and_manifests_hold_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    MetricsWriter(path, 0).write({"kind": "train", "step": 1, "loss": math.nan, "gradient_norm": math.inf})
    assert strict(path.read_bytes()) | {"loss": None, "gradient_norm_is": "Infinity"} == strict(path.read_bytes())
    assert math.isnan(read_metrics(path)[0]["loss"])
    figures = {"documents": 1, "tokens": 1, "text_bytes": 1, "nats": math.inf, "nats_per_token": math.inf}
    made = Evaluation(folder=tmp_path, weights="", perplexity=math.inf, bits_per_byte=math.nan, sources={}, **figures)
    made.save()
    strict((tmp_path / "evaluation.json").read_bytes())
    assert repr(Evaluation.load(tmp_path)) == repr(made)
    (tmp_path / "manifest.json").write_bytes(manifest_bytes({"loss": math.nan, "files": {}}))
    assert strict((tmp_path / "manifest.json").read_bytes())["loss_is"] == "NaN"


def test_every_json_file_of_a_run_is_strict(prepared: Prepared) -> None:
    folder = finished(prepared, max_steps=2).folder
    texts = [path.read_bytes() for path in folder.rglob("*.json")]
    texts += [line for path in folder.rglob("*.jsonl") for line in path.read_bytes().splitlines()]
    assert len(texts) > 8
    for text in texts:
        strict(text)
