"""The time that is left is measured where the steps are made, and is right after a few seconds of them."""

import json
import logging
from dataclasses import asdict
from pathlib import Path

import pytest

from lmcore.progress import Standing
from lmcore.runs.training_progress import (
    ProgressWriter,
    RecurringWork,
    TrainingProgress,
    forecast,
    training_poll,
)
from tests.conftest import Prepared


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def writer(path: Path | None, clock: FakeClock, total: int = 1000, **interruptions: RecurringWork) -> ProgressWriter:
    return ProgressWriter(path, total, interruptions, "cpu", clock)


def test_import_and_compilation_are_no_part_of_the_first_estimate(tmp_path: Path, clock: FakeClock) -> None:
    progress = writer(tmp_path / "p.json", clock)
    progress.begin(0, None)
    clock.now += 120  # compiles
    for step in range(1, 8):
        progress.reached(step)
        clock.now += 1.2
    found = TrainingProgress.read(tmp_path / "p.json")
    assert found is not None
    assert found.seconds_left == pytest.approx((1000 - found.step) * 1.2)


def test_nothing_is_said_before_three_seconds_of_steps(tmp_path: Path, clock: FakeClock) -> None:
    progress = writer(tmp_path / "p.json", clock)
    progress.begin(0, 0.1)
    for step in range(1, 4):
        clock.now += 0.9
        progress.reached(step)
        found = TrainingProgress.read(tmp_path / "p.json")
        assert found is not None
        assert found.seconds_left is None


def test_a_long_step_is_guessed_before_the_first_and_then_measured(tmp_path: Path, clock: FakeClock) -> None:
    progress = writer(tmp_path / "p.json", clock)
    progress.begin(0, 40.0)
    found = TrainingProgress.read(tmp_path / "p.json")
    assert found is not None
    assert found.seconds_left == 40_000
    for step in (1, 2):
        clock.now += 50
        progress.reached(step)
    found = TrainingProgress.read(tmp_path / "p.json")
    assert found is not None
    assert found.seconds_left == 998 * 50


def test_validations_and_checkpoints_are_part_of_what_is_left(tmp_path: Path, clock: FakeClock) -> None:
    parts = {"validation": RecurringWork(100, steps=7.0), "checkpoint": RecurringWork(500), "samples": RecurringWork(0)}
    progress = writer(tmp_path / "p.json", clock, **parts)
    progress.begin(0, None)
    for step in range(1, 100):
        clock.now += 1
        progress.reached(step)
    found = TrainingProgress.read(tmp_path / "p.json")
    assert found is not None
    assert found.seconds_left == pytest.approx(901 + 10 * 7)
    clock.now += 1
    progress.reached(100)
    with progress.phase("validation", 100):
        clock.now += 30
        during = TrainingProgress.read(tmp_path / "p.json")
        assert during is not None
        assert during.phase == "validation"
    clock.now += 1
    progress.reached(101)
    found = TrainingProgress.read(tmp_path / "p.json")
    assert found is not None
    assert found.phase == "steps"
    assert found.seconds_left == pytest.approx(899 + 9 * 30)


def test_a_machine_that_becomes_slower_is_believed(tmp_path: Path, clock: FakeClock) -> None:
    progress = writer(tmp_path / "p.json", clock, total=3000)
    for step in range(2000):
        clock.now += 0.1 if step < 1500 else 1.0
        progress.reached(step)
    found = TrainingProgress.read(tmp_path / "p.json")
    assert found is not None
    assert found.seconds_left == pytest.approx(3000 - found.step, rel=0.25)


def test_steps_need_not_be_told_one_by_one(tmp_path: Path, clock: FakeClock) -> None:
    progress = writer(tmp_path / "p.json", clock)
    for step in (10, 20, 30):
        clock.now += 5
        progress.reached(step)
    found = TrainingProgress.read(tmp_path / "p.json")
    assert found is not None
    assert found.seconds_left == 970 * 0.5


def test_other_ranks_write_nothing_and_a_full_disk_costs_nothing(tmp_path: Path, clock: FakeClock) -> None:
    for path in (None, tmp_path / "nowhere" / "p.json"):
        progress = writer(path, clock)
        progress.begin(0, None)
        progress.reached(1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "{}", "[1]", json.dumps({"step": 1})])
def test_a_file_that_is_just_being_written_is_not_read(tmp_path: Path, content: str) -> None:
    (tmp_path / "p.json").write_text(content)
    assert TrainingProgress.read(tmp_path / "p.json") is None


# --- what people are told ---


@pytest.mark.parametrize(
    ("step", "seconds", "device", "level", "text"),
    [
        (0, 70, "cpu", logging.INFO, "takes about 1 min 10 s on this CPU (700 steps)"),
        (400, 30, "cuda", logging.INFO, "takes about 30 s on this GPU (300 steps left)"),
        (0, 32_400, "mps", logging.WARNING, "takes about 9 h 00 min on this machine (700 steps). The preset tiny"),
    ],
)
def test_the_time_left_is_a_sentence(step: int, seconds: float, device: str, level: int, text: str) -> None:
    found = forecast(TrainingProgress(step, 700, "steps", seconds, device), seconds)
    assert found[0] == level
    assert found[1].startswith(f"At this speed the training {text}")
    assert ("train.max_minutes" in found[1]) == (level == logging.WARNING)


def test_the_time_left_is_logged_once_and_an_old_file_is_removed(
    prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    run = prepared.run()
    caplog.set_level(logging.INFO)
    run.progress.write_text("old")
    poll = training_poll(run, logging.getLogger("test"))
    assert not run.progress.exists()
    assert poll() == Standing(note="loading")
    for progress, standing in (
        (TrainingProgress(0, 700, "steps", None, "cpu"), Standing(0, 700, "the first step")),
        (TrainingProgress(5, 700, "steps", 70.0, "cpu"), Standing(5, 700, "", 70.0)),
        (TrainingProgress(70, 700, "validation", 70.0, "cpu"), Standing(70, 700, "validation", 70.0)),
    ):
        run.progress.write_text(json.dumps(asdict(progress)))
        assert poll() == standing
    run.progress.write_text("")
    assert poll().done == 70
    assert [record.name for record in caplog.records].count("test") == 1
