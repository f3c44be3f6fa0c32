"""Rows of metrics.jsonl survive crashes and are made again from the checkpoint on."""

import json
from pathlib import Path

import pytest

from lmcore import errors, metrics
from lmcore.metrics import MetricsWriter, last_standing, read_metrics


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
    assert last_standing(path) is None


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


def test_the_last_standing_has_the_last_step_and_the_speed(path: Path) -> None:
    writer = MetricsWriter(path, 0)
    writer.write(row(1, "validation"))
    assert last_standing(path) == (1, 9, "loss 1.500")
    writer.write(row(2, tokens_per_second=12345.6))
    writer.write(row(3, "validation"))
    assert last_standing(path) == (3, 9, "loss 1.500, 12,346 tokens/s")


def test_every_line_is_one_json_object(path: Path) -> None:
    MetricsWriter(path, 0).write(row(1, note="行\n\u2028改"))  # type: ignore[arg-type]
    [line] = path.read_bytes().split(b"\n")[:-1]
    assert json.loads(line)["note"] == "行\n\u2028改"
    assert metrics.read_metrics(path) == [json.loads(line)]
