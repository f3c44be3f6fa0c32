"""The time that is left is measured where the steps are made, and is right after a few seconds of them."""

import json
from pathlib import Path

import pytest

from lmcore.runs.training_progress import Pace, ProgressWriter, RecurringWork, TrainingProgress


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def writer(path: Path | None, clock: FakeClock, total: int = 1000, **interruptions: RecurringWork) -> ProgressWriter:
    return ProgressWriter(path, total, interruptions, 1e9, "cpu", clock)


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


def test_a_machine_that_becomes_slower_is_believed(clock: FakeClock) -> None:
    pace = Pace(clock)
    for step in range(2000):
        clock.now += 0.1 if step < 1500 else 1.0
        pace.reached(step)
    assert pace.seconds_per_step == pytest.approx(1.0, rel=0.25)


def test_steps_need_not_be_told_one_by_one(clock: FakeClock) -> None:
    pace = Pace(clock)
    for step in (10, 20, 30):
        clock.now += 5
        pace.reached(step)
    assert pace.seconds_per_step == 0.5


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
