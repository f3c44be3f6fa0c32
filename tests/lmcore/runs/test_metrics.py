"""Rows of metrics.jsonl survive crashes and are made again from the checkpoint on."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore import errors
from lmcore.runs import metrics
from lmcore.runs.metrics import MetricsWriter, by_step, read_metrics, training_note


def row(step: int, kind: str = "train", **figures: float) -> dict[str, object]:
    return {"kind": kind, "step": step, "total_steps": 9, "loss": 1.5, **figures}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def test_rows_come_back_as_written(path: Path) -> None:
    writer = MetricsWriter(path, 0)
    rows = [row(step) for step in range(1, 4)]
    for each in rows:
        writer.write(each)
        assert read_metrics(path)[-1] == each
    assert read_metrics(path) == rows


def test_no_file_is_no_rows(path: Path) -> None:
    assert read_metrics(path) == []
    assert training_note(path) == ""


@pytest.mark.parametrize("cut", range(1, 30, 7))
def test_a_row_that_a_crash_cut_off_is_left_out_and_overwritten(path: Path, cut: int) -> None:
    writer = MetricsWriter(path, 0)
    writer.write(row(1))
    writer.write(row(2))
    path.write_bytes(path.read_bytes()[:-cut])
    whole = [row(1), row(2)] if cut == 1 else [row(1)]
    assert read_metrics(path) == whole
    MetricsWriter(path, 2).write(row(3))
    assert read_metrics(path) == [*whole, row(3)]
    assert len(path.read_bytes().splitlines()) == len(whole) + 1


def test_opening_drops_the_rows_after_the_checkpoint(path: Path) -> None:
    writer = MetricsWriter(path, 0)
    for step in (1, 2, 3, 3, 4):
        writer.write(row(step))
    MetricsWriter(path, 3)
    assert [each["step"] for each in read_metrics(path)] == [1, 2, 3, 3]
    MetricsWriter(path, 0)
    assert read_metrics(path) == []


def test_a_full_disk_is_named(path: Path) -> None:
    writer = MetricsWriter(path, 0)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(errors.NoSpaceError, match=str(path.parent)):
        writer.write(row(1))


def test_the_note_has_the_last_loss_and_the_speed(path: Path) -> None:
    writer = MetricsWriter(path, 0)
    writer.write(row(1, "validation"))
    assert training_note(path) == "loss 1.500"
    writer.write(row(2, tokens_per_second=12345.6))
    writer.write(row(3, "validation"))
    assert training_note(path) == "loss 1.500, 12,346 tokens/s"


def test_every_line_is_one_json_object(path: Path) -> None:
    MetricsWriter(path, 0).write(row(1, note="行\n\u2028改"))  # type: ignore[arg-type]
    [line] = path.read_bytes().split(b"\n")[:-1]
    assert json.loads(line)["note"] == "行\n\u2028改"
    assert metrics.read_metrics(path) == [json.loads(line)]


def test_an_event_does_not_hide_how_far_training_is(path: Path) -> None:
    writer = MetricsWriter(path, 0)
    writer.write(row(4, tokens_per_second=100))
    writer.write({"kind": "event", "step": 5, "total_steps": 9, "text": "step 5 was skipped"})
    assert training_note(path) == "loss 1.500, 100 tokens/s"


@given(count=st.integers(0, 60), note=st.text(max_size=40), tail=st.integers(1, 3000))
def test_the_last_rows_are_those_at_the_end(tmp_path_factory: Any, count: int, note: str, tail: int) -> None:
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    rows = [{"kind": "event", "step": step, "text": note} for step in range(count)]
    path.write_bytes(b"".join(json.dumps(each).encode() + b"\n" for each in rows))
    last = read_metrics(path, tail)
    assert last == rows[len(rows) - len(last) :]
    assert len(last) == count or len(last) >= tail // len(json.dumps(rows[-1]) + "\n") - 1


def test_a_look_at_a_long_file_reads_its_end_only(path: Path) -> None:
    path.write_bytes(b"".join(json.dumps(row(step)).encode() + b"\n" for step in range(20_000)))
    assert 100 < len(read_metrics(path, 65_536)) < 2_000
    assert read_metrics(path, 65_536)[-1] == row(19_999)


# --- TensorBoard ---


def scalars(folder: Path, name: str) -> list[tuple[int, float]]:
    """(step, value) as TensorBoard shows them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    if name in events.Tags()["scalars"]:
        return [(event.step, event.value) for event in events.Scalars(name)]
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in events.Tensors(name)]


def test_every_figure_goes_to_tensorboard(path: Path) -> None:
    writer = MetricsWriter(path, 0, path.parent / "tensorboard")
    writer.write(row(1, learning_rate=0.25, gradient_norm=2.0, skipped=1))
    writer.write({**row(1, "validation", bits_per_byte=0.5), "sources": {"web": 1.25, "wiki": 1.75}})
    writer.write({"kind": "event", "step": 2, "total_steps": 9, "text": "step 2 was skipped"})
    writer.write_text("samples/1", "# 学習\n\n*a*", 2)
    found = {name: scalars(path.parent / "tensorboard", name) for name in ("train/learning_rate", "train/skipped")}
    assert found == {"train/learning_rate": [(1, 0.25)], "train/skipped": [(1, 1.0)]}
    assert scalars(path.parent / "tensorboard", "train/loss") == [(1, 1.5)]
    assert scalars(path.parent / "tensorboard", "validation/bits_per_byte") == [(1, 0.5)]
    assert scalars(path.parent / "tensorboard", "validation/sources/wiki") == [(1, 1.75)]
    assert scalars(path.parent / "tensorboard", "events/text_summary") == [(2, "step 2 was skipped")]
    assert scalars(path.parent / "tensorboard", "samples/1/text_summary") == [(2, "    # 学習\n    \n    *a*")]


def test_a_resumed_run_has_every_point_once(path: Path) -> None:
    for first, resumed_at, last in ((1, 0, 40), (31, 30, 60), (61, 60, 70)):
        writer = MetricsWriter(path, resumed_at, path.parent / "tensorboard")
        for step in range(first, last + 1):
            writer.write(row(step))
    assert [step for step, _ in scalars(path.parent / "tensorboard", "train/loss")] == list(range(1, 71))
    assert [each["step"] for each in read_metrics(path)] == list(range(1, 71))


def test_tensorboard_that_is_asked_for_later_gets_the_rows_from_before(path: Path) -> None:
    writer = MetricsWriter(path, 0)
    for step in range(1, 6):
        writer.write(row(step))
    MetricsWriter(path, 3, path.parent / "tensorboard").write(row(4))
    assert [step for step, _ in scalars(path.parent / "tensorboard", "train/loss")] == [1, 2, 3, 4]


def test_without_its_package_the_error_says_what_to_install(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    MetricsWriter(path, 0).write(row(5))
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(errors.ConfigError, match=r"lm-pipeline\[tensorboard\]"):
        MetricsWriter(path, 0, path.parent / "tensorboard")
    assert read_metrics(path) == [row(5)]


def test_of_a_step_made_again_the_last_row_counts() -> None:
    rows = [row(1), row(2, lap=1), row(3, lap=1), row(2, "validation"), row(2, lap=2)]
    assert by_step(rows, "train") == {1: row(1), 2: row(2, lap=2), 3: row(3, lap=1)}
