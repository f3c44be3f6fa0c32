"""Pictures of losses: of any length, with any names, and never wrong glyphs."""

import math
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from lmcore.errors import StoreError
from lmcore.report import plots as plotting
from lmcore.report.plots import compare_losses, loss_picture, plot
from lmcore.runs.metrics import MetricsWriter, Row


def rows(count: int, start: float = 6.0) -> list[Row]:
    """A training that gets better, with a validation every tenth step and an event."""
    losses = [(step, 3 + start * math.exp(-step / 20)) for step in range(1, count + 1)]
    found = [{"kind": "train", "step": step, "tokens": step * 64, "loss": loss} for step, loss in losses]
    found += [{**row, "kind": "validation"} for row in found[9::10]]
    return [*found, {"kind": "event", "step": 1, "text": "a step was skipped"}]


def pixels(picture: bytes) -> Any:
    return matplotlib.image.imread(BytesIO(picture), format="png")


def colours(picture: bytes) -> set[tuple[int, ...]]:
    image = (pixels(picture)[:, :, :3] * 255).round().astype(int)
    return {tuple(colour) for colour in np.unique(image.reshape(-1, 3), axis=0)}


def rgb(code: str) -> tuple[int, ...]:
    return tuple(int(code[start : start + 2], 16) for start in (1, 3, 5))


def test_a_long_curve_is_drawn_as_means() -> None:
    noise = np.random.default_rng(0).normal(size=12_345)
    drawn: list[Any] = []
    axes = SimpleNamespace(plot=lambda tokens, losses, *_, **__: drawn.append((tokens, losses)))
    long = [{"kind": "train", "step": n, "tokens": n, "loss": loss} for n, loss in enumerate(noise.tolist())]
    for part in (long, long[:1000]):
        plotting._curve(axes, part, "train", linewidth=1)
    (tokens, means), (_, losses) = drawn
    assert len(means) == 1000
    assert np.all(np.diff(tokens) > 0)
    assert means.std() < noise.std() / 2
    assert np.array_equal(losses, noise[:1000])


def test_both_losses_are_drawn() -> None:
    picture = loss_picture(rows(50), "run")
    assert pixels(picture).shape[:2] == (495, 880)
    assert {rgb("#7da7d9"), rgb("#c0392b")} <= colours(picture)
    assert rgb("#c0392b") not in colours(loss_picture([row for row in rows(50) if row["kind"] == "train"], "run"))


def test_a_run_without_rows_is_an_empty_picture() -> None:
    assert pixels(loss_picture([], "run")).shape[:2] == (495, 880)


def test_every_run_has_its_colour_equal_ones_too() -> None:
    first, second = rgb("#1f77b4"), rgb("#ff7f0e")
    assert {first, second} <= colours(compare_losses({"whole": rows(50), "interrupted": rows(50)}))
    assert second not in colours(compare_losses({"whole": rows(50)}))


@pytest.mark.parametrize("name", ["学習", "한국어", "😀", "_hidden", "$a_{b$", "a$b", "\\", "", "é ß"])
def test_any_name_can_be_drawn(name: str) -> None:
    # A warning is an error here: a glyph that no font has, or a formula.
    assert pixels(loss_picture(rows(20), name)).shape[:2] == (495, 880)
    assert pixels(compare_losses({name: rows(20), "other": rows(30)})).shape[:2] == (495, 880)


def make_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    writer = MetricsWriter(folder / "metrics.jsonl", 0)
    for row in rows(10):
        writer.write(row)
    return folder


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(plotting, "compare_losses", lambda runs: names.extend(runs) or b"")
    folders = [make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run"), make_run(tmp_path / "学習")]
    plot(folders, tmp_path / "losses.png")
    assert names == [str(folders[0]), str(folders[1]), "学習"]


def test_a_folder_without_losses_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"{tmp_path} has no losses"):
        plot([make_run(tmp_path / "run"), tmp_path], tmp_path / "losses.png")
    assert not (tmp_path / "losses.png").exists()
