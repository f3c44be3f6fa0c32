"""No wall clock that jumps, no time zone and no daylight saving changes a result; what is stored is UTC."""

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import pytest

from lmcore import clock
from lmcore.corpus.listing import open_corpus
from lmcore.corpus.scan import is_unsettled
from lmcore.dataset.tokenization import tokenize
from lmcore.model.evaluate import evaluate
from lmcore.model.export import export
from lmcore.registry.registry import add_version, promote, rollback
from lmcore.registry.versions import champion, history, versions
from lmcore.runs.prepare import prepare_run
from lmcore.store.remembered_inputs import remember, what_changed
from lmcore.tokenizer.make import make_tokenizer
from lmcore.training.train import train
from tests.conftest import tiny_config

HOUR = 3600.0
ZONES = ["UTC", "Asia/Tokyo", "America/New_York"]


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """From one reading to the next the wall clock goes forward and back by hours; whoever reads it, sees that."""
    real, jumps = time.time, cycle([0, -5 * HOUR, 9 * HOUR, -30 * HOUR, 3 * HOUR, 48 * HOUR])
    monkeypatch.setattr(time, "time", lambda: real() + next(jumps))


@pytest.fixture
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """This process's time zone."""
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def made(corpus: Path, store: Path, **settings: object) -> dict[str, Any]:
    """What a store holds after two versions were made of a corpus: all ids that do not name a time."""
    config = tiny_config(corpus, store, **settings)
    looked_at, store = open_corpus(config)
    tokenizer = make_tokenizer(config.tokenizer, config.corpus, looked_at, store)
    dataset = tokenize(config.corpus, looked_at, tokenizer, store)
    found: dict[str, Any] = {"dataset": dataset.id, "changed": dataset.corpus_changed}
    for seed in (0, 1):
        seeded = config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})
        run = prepare_run(seeded, dataset, tokenizer, store)
        training = train(run)
        export(training, evaluate(run, training.checkpoint))
        before = champion(store, "ja")
        version = add_version(store, "ja", run, {"promoted": True})
        promote(store, "ja", version.id, expected=before.id if before else None, reason=f"seed {seed}")
        assert training.tokens_per_second > 0
        found[version.id] = [run.folder.name, training.weights]
    rollback(store, "ja", reason="back")
    current = champion(store, "ja")
    events = [[event["event"], event["version"], event["from"]] for event in history(store, "ja")]
    return found | {"champion": current.id if current else None, "history": events}


@pytest.fixture(scope="module")
def expected(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By a clock that goes as it should."""
    found = made(corpus, tmp_path_factory.mktemp("expected") / "store")
    assert found["champion"] == "v0001"
    assert [event for event, *_ in found["history"]] == ["added", "promoted", "added", "promoted", "rolled back"]
    return found


@pytest.mark.usefixtures("jumping")
def test_a_clock_that_jumps_by_hours_changes_nothing(corpus: Path, tmp_path: Path, expected: dict[str, Any]) -> None:
    """And nothing that is limited in minutes ends."""
    assert made(corpus, tmp_path / "store", max_minutes=30) == expected
    times = [event["time"] for event in history(tmp_path / "store", "ja")]
    assert times != sorted(times)  # it did jump; the order of the lines is the order of events


@pytest.mark.parametrize("zone", ZONES, indirect=True)
def test_in_every_time_zone_the_same_is_made_and_told_in_utc(
    corpus: Path, tmp_path: Path, expected: dict[str, Any], zone: str
) -> None:
    before, store = datetime.now(UTC), tmp_path / "store"
    assert made(corpus, store) == expected
    told = [event["time"] for event in history(store, "ja")]
    told += [version.receipt()["created"] for version in versions(store, "ja")]
    for time_told in told:
        assert time_told.endswith("+00:00")
        assert before <= datetime.fromisoformat(time_told) <= datetime.now(UTC)


@pytest.mark.parametrize("zone", ["America/New_York"], indirect=True)
def test_the_hour_that_comes_twice_is_two_hours(zone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minutes, stamps = [], []
    for hour in (5, 6):
        at = datetime(2026, 11, 1, hour, 30, tzinfo=UTC)
        assert at.astimezone().strftime("%H:%M") == "01:30"
        monkeypatch.setattr(clock, "now", at.timestamp)
        stamps.append(clock.iso_timestamp())
        remember("x", {"store": str(tmp_path), "hour": hour})
        minutes.append(what_changed("x", {"store": str(tmp_path), "hour": hour}))
    assert stamps == ["2026-11-01T05:30:00.000000+00:00", "2026-11-01T06:30:00.000000+00:00"]
    assert ["05:30 UTC" in minutes[0], "06:30 UTC" in minutes[1]] == [True, True]


def test_a_file_dated_in_the_future_counts_as_settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a file that was written by a wrong clock would not be read for as long."""
    (tmp_path / "x").touch()
    noon = clock.now()
    os.utime(tmp_path / "x", (noon - 10, noon - 10))
    assert is_unsettled(str(tmp_path / "x"), 60)
    monkeypatch.setattr(clock, "now", lambda: noon - 3 * HOUR)
    assert not is_unsettled(str(tmp_path / "x"), 60)


@pytest.mark.usefixtures("jumping")
def test_laps_are_not_measured_by_the_wall_clock() -> None:
    watch = clock.Clock()
    laps = [sum(watch.lap()) for _ in range(20)]
    assert all(0 <= lap < HOUR for lap in laps)
    assert 0 <= watch.minutes() < 60
    readings = [clock.now() for _ in range(6)]
    assert any(later < reading - HOUR for reading, later in pairwise(readings))
