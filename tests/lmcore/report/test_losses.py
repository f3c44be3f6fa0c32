"""Tables are bounded and end with the last row; warnings are said when they are true, and only then."""

import json
import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmcore.report.losses import events, figures, loss_table, warnings
from lmcore.store.json_files import Row


def metrics(trains: list[int], validations: list[int]) -> list[Row]:
    rows = [{"kind": "train", "step": step, "tokens": step * 64, "loss": 6 - step / 100} for step in trains]
    rows += [{"kind": "validation", "step": step, "tokens": step * 64, "loss": 7 - step / 100} for step in validations]
    rows += [{"kind": "event", "step": step, "text": "a step was skipped"} for step in trains[:2]]
    return sorted(rows, key=lambda row: int(str(row["step"])))


@given(
    trains=st.lists(st.integers(1, 99), unique=True, max_size=40),
    validations=st.lists(st.integers(1, 99), unique=True, max_size=40),
    most=st.integers(1, 12),
)
def test_the_loss_table_is_bounded_and_ends_with_the_last_row(
    trains: list[int], validations: list[int], most: int
) -> None:
    rows = metrics(trains, validations)
    table = loss_table(rows, most)
    steps = [line["step"] for line in table]
    assert len(table) <= most
    assert steps == sorted(set(steps))
    assert set(steps) <= {*trains, *validations}
    if len({*trains, *validations}) <= most:
        assert set(steps) == {*trains, *validations}
    elif validations:
        assert steps[-1] == max(validations)
        assert len(validations) > most or set(validations) <= set(steps)
    else:
        assert steps[-1] == max(trains)


def test_a_line_of_the_loss_table_has_both_losses() -> None:
    [first, second] = loss_table(metrics([1, 2], [2]))
    assert first == {"step": 1, "tokens": 64, "train loss": 5.99, "validation loss": ""}
    assert second == {"step": 2, "tokens": 128, "train loss": 5.98, "validation loss": 6.98}


def test_the_loss_table_is_the_golden_one(check_golden: Any) -> None:
    table = loss_table(metrics(list(range(1, 60)), list(range(10, 61, 10))), 12)
    check_golden("loss_table.json", json.dumps(table, indent=1) + "\n")


def test_figures_are_those_the_rows_have() -> None:
    rows: list[Row] = [
        {"kind": "train", "mfu": share, "memory_bytes": size, "data_wait_share": 0.001, "skipped": skipped}
        for share, size, skipped in ((0.1, 2**30, 0), (0.5, 2**31, 0), (0.4, 2**30, 3))
    ]
    assert figures(rows) == {
        "MFU": "40.0% of the stated peak",
        "peak memory": "2.00 GiB",
        "waiting for data": "0.10% of the time",
        "skipped steps": "3",
    }
    assert figures([{"kind": "train", "memory_bytes": None}, {"kind": "validation", "mfu": 1}]) == {}


def test_the_last_events_are_told() -> None:
    rows: list[Row] = [{"kind": "event", "step": step, "text": f"event {step}"} for step in range(30)]
    assert events([*rows, *metrics([1], [2])])[-2:] == [
        {"step": 29, "event": "event 29"},
        {"step": 1, "event": "a step was skipped"},
    ]
    assert len(events(rows)) == 20


# --- warnings ---


def course(train: Any, validation: Any, steps: int = 300, noise: float = 0.0) -> list[Row]:
    """Rows of a run whose losses are functions of the share of the run that is done."""
    draw = random.Random(0)
    rows: list[Row] = []
    for step in range(10, steps + 1, 10):
        for kind, loss in (("train", train), ("validation", validation)):
            if kind == "train" or step % 20 == 0:
                rows.append({"kind": kind, "step": step, "loss": loss(step / steps) + draw.gauss(0, noise)})
    return rows


def falls(done: float) -> float:
    return 3 + 4 * math.exp(-3 * done)


def turns(done: float) -> float:
    """Lowest at half of the run."""
    return 4 + 3 * (done - 0.5) ** 2


def test_overfitting_is_said_with_the_best_step() -> None:
    [warning] = warnings(course(falls, turns))
    assert warning.startswith("overfitting: from step 220 to 300 the validation loss rose by 0.")
    assert "lowest at step 140" in warning or "lowest at step 160" in warning


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize(
    ("train", "validation"),
    [
        (falls, falls),
        (turns, turns),  # both get worse: that is another trouble
        (falls, lambda done: 4.0),
        (falls, lambda done: max(4.0, falls(done))),
    ],
)
def test_other_courses_are_no_overfitting(train: Any, validation: Any, noise: float) -> None:
    assert warnings(course(train, validation, 600, noise)) == []


def test_few_validations_are_no_trend() -> None:
    rows = course(falls, turns)
    few = [row for row in rows if row["kind"] == "train"] + [row for row in rows if row["kind"] == "validation"][-3:]
    assert warnings(few) == []


def test_no_validation_at_all_is_said() -> None:
    assert "nothing was validated" in warnings(metrics([1, 2], []))[0]
    assert warnings([]) == []
