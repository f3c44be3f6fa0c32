"""What Prefect costs and what its faults cost: python tests/benchmarks/orchestration.py SECTION ... [--count 20]

Each section starts ``make serve`` in a home of its own, does to it what people and machines do, and prints a table. The
sections:

    signal     from SIGTERM of the training's process to its end and a free lock
    cancel     from the click on Cancel to no process and free locks, at random moments of a run
    start      a flow of this package against an empty one, both as plain Python with a server of their own
    overhead   a run under Prefect against the same verbs of lmcore alone
    outage     the step loop in minutes in which the server does not answer, against those in which it does
    faults     kill -9 of the run, the training, make serve, all at once; a locked database: does the run go on
    schedule   from the time of a scheduled run to its start
"""

import argparse
import os
import random
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench import ROOT, sized, table

sys.path.insert(0, str(ROOT))

from lmcore.runs.metrics import read_metrics
from tests.conftest import tiny_config, write_corpus
from tests.serving import FLOW, SERVE, SERVER, TRAINING, Serving, clean_environment, settings_form

_ENDLESS = 10**6
"""Steps."""


class Pipeline:
    """A served pipeline, a corpus, and one store."""

    def __init__(self, folder: Path) -> None:
        self.store, self.corpus = folder / "store", write_corpus(folder / "corpus", documents=3000)
        (folder / "home").mkdir()
        fast = {"PREFECT_RUNNER_POLL_FREQUENCY": "2"}
        self.serving = Serving(folder / "home", **fast)
        self.api = self.serving.api
        self.serving.wait()

    def settings(self, **train: object) -> dict[str, Any]:
        train = {"max_steps": _ENDLESS, "log_every": 10, "checkpoint_every": 200, "device": "cpu", **train}
        return tiny_config(self.corpus, self.store, **train).model_dump(mode="json")

    def start(self, **train: object) -> str:
        return self.api.start("pretrain", self.settings(**train))

    def step(self) -> int:
        rows = [row["step"] for path in self.store.glob("runs/*/metrics.jsonl") for row in read_metrics(path)]
        return max(rows, default=0)

    def saved(self) -> int:
        """Step of the newest checkpoint."""
        names = [path.name for path in self.store.glob("runs/*/checkpoints/step-*")]
        return max((int(name.split("-")[1]) for name in names), default=0)

    def wait_for_steps(self, more: int = 1) -> None:
        first = self.step()
        self.api.wait(lambda: self.step() >= first + more)

    def is_idle(self) -> bool:
        return not self.serving.processes(FLOW) and not self.serving.processes(TRAINING)


@contextmanager
def pipeline() -> Iterator[Pipeline]:
    with TemporaryDirectory() as folder:
        made = Pipeline(Path(folder))
        try:
            yield made
        finally:
            left = made.serving.stop()
            print(f"left after the end: {left or 'nothing'}")


def seconds_until(condition: Callable[[], bool], at_most: float = 120) -> float:
    start = time.perf_counter()
    while not condition():
        if time.perf_counter() - start > at_most:
            return float("inf")
        time.sleep(0.02)
    return time.perf_counter() - start


def spread(seconds: list[float]) -> list[str]:
    return [f"{statistics.median(seconds):.2f}", f"{min(seconds):.2f}", f"{max(seconds):.2f}"]


def signals(count: int) -> None:
    with pipeline() as made:
        made.api.ended(made.start(max_steps=20))  # corpus and tokens are there
        seconds = []
        for _ in range(count):
            run = made.start()
            made.wait_for_steps(20)
            [training] = made.serving.processes(TRAINING)
            os.kill(training, signal.SIGTERM)
            seconds.append(seconds_until(lambda: not made.serving.processes(TRAINING)))
            assert made.api.ended(run)["name"] == "Stopped"
        table(
            "From the signal to the end of the training, checkpoint saved (seconds)",
            "signals|median|least|most",
            [[str(count), *spread(seconds)]],
        )


def cancels(count: int) -> None:
    draw = random.Random(0)
    with pipeline() as made:
        seconds, resumed, states, before = [], 0, [], 0
        for number in range(count):
            run = made.start()
            made.api.ended(run, "RUNNING")
            time.sleep(draw.uniform(0, 12))
            made.api.cancel(run)
            seconds.append(seconds_until(made.is_idle))
            states.append(made.api.ended(run)["type"])
            resumed += made.saved() >= before
            before = made.saved()
            print(f"{number}: {seconds[-1]:.2f} s, {states[-1]}, checkpoint of step {before}", flush=True)
        run = made.start()
        made.wait_for_steps(20)
        assert made.step() > before
        made.api.cancel(run)
        made.api.ended(run)
        cancelled = sum(state == "CANCELLED" for state in states)
        head = "cancels|median|least|most|state Cancelled|resumable"
        table(
            "From the click to no process left (seconds)",
            head,
            [[str(count), *spread(seconds), f"{cancelled} of {count}", f"{resumed} of {count}"]],
        )


_EMPTY = "from prefect import flow\n@flow\ndef empty(): pass\nempty()"


def starts(count: int) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        environment = clean_environment(
            PREFECT_HOME=str(folder / "home"),
            PREFECT_LOGGING_LEVEL="ERROR",
            PREFECT_SERVER_ANALYTICS_ENABLED="false",
            DO_NOT_TRACK="1",
            PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="120",
        )
        write_corpus(folder / "corpus")
        ours = "import time\nstart = time.time()\nfrom flows.pretrain import pretrain\nfrom flows.prepare_data import "
        ours += "prepare\nfrom prefect import flow\n@flow\ndef begin(): pass\nbegin()"
        found: dict[str, list[float]] = {"empty": [], "ours": []}
        for number in range(count + 1):
            for which, code in (("empty", _EMPTY), ("ours", ours)):
                begin = time.perf_counter()
                subprocess.run(
                    [sys.executable, "-c", code],
                    cwd=ROOT,
                    env=environment,
                    check=True,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                if number:  # the first makes the database
                    found[which].append(time.perf_counter() - begin)
        ratio = statistics.median(found["ours"]) / statistics.median(found["empty"])
        rows = [[which, *spread(seconds)] for which, seconds in found.items()]
        table(
            f"A start with a temporary server (seconds); ours is {ratio:.2f} times the empty one",
            "flow|median|least|most",
            rows,
        )


def overhead(count: int) -> None:
    """``count`` is the minutes of training."""
    with pipeline() as made:
        begin = time.perf_counter()
        run = made.start(max_minutes=float(count))
        made.api.ended(run, seconds=count * 60 + 300)
        served = time.perf_counter() - begin
        rows = [
            row
            for path in made.store.glob("runs/*/metrics.jsonl")
            for row in read_metrics(path)
            if row["kind"] == "train"
        ]
        with_prefect = statistics.median(row["tokens_per_second"] for row in rows)
        shutil.copytree(made.store, made.store.parent / "alone")
        [folder] = (made.store.parent / "alone").glob("runs/*")
        begin = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "lmcore", "train", str(folder)],
            cwd=ROOT,
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        alone = time.perf_counter() - begin
        later = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "train"][len(rows) :]
        without = statistics.median(row["tokens_per_second"] for row in later)
        fixed = served - alone
        slower = without / with_prefect - 1
        share = (fixed + 600 * max(0.0, slower)) / 600
        table(
            f"A run of {count} minutes, and what it says of one of ten",
            "|seconds|tokens/s, median",
            [
                ["served, with data and tokenizer", f"{served:.1f}", f"{with_prefect:,.0f}"],
                ["python -m lmcore train alone", f"{alone:.1f}", f"{without:,.0f}"],
                ["difference", f"{fixed:.1f}", f"{100 * slower:+.1f} % a step"],
                ["share of ten minutes", f"{100 * share:.1f} %", ""],
            ],
        )


_AWAY_SECONDS = sized(60, 3)


def outage(count: int) -> None:
    """The server is away for a minute ``count`` times, and as often it is not, which says what the noise is."""
    with pipeline() as made:
        run = made.start()
        made.wait_for_steps(200)
        rates = [_steps_per_second(made)]
        for number in range(2 * count):
            if number % 2 == 0:
                made.serving.kill(SERVER, number=signal.SIGSTOP)
            rates.append(_steps_per_second(made))
            made.serving.kill(SERVER, number=signal.SIGCONT)
            rates.append(_steps_per_second(made))
        state = made.api.run(run)["state"]["name"]
        made.api.cancel(run)
        end = made.api.ended(run)["type"]
        changes = [100 * (2 * rates[at] / (rates[at - 1] + rates[at + 1]) - 1) for at in range(1, len(rates), 2)]
        table(
            f"Steps a second in a minute, against the minutes before and after (%); then the run is {state}, {end}",
            "the server|median|least|most",
            [
                [name, *(f"{each(some):+.1f}" for each in (statistics.median, min, max))]
                for name, some in (("does not answer", changes[::2]), ("answers", changes[1::2]))
            ],
        )


def _steps_per_second(made: Pipeline) -> float:
    begin, first = time.perf_counter(), made.step()
    time.sleep(_AWAY_SECONDS)
    return (made.step() - first) / (time.perf_counter() - begin)


def faults(count: int) -> None:
    """Does each once; every one ends with the same run trained further."""
    with pipeline() as made:
        rows = []
        for name, do in FAULTS.items():
            run = made.start()
            made.wait_for_steps(250)
            before = made.saved()
            begin = time.perf_counter()
            do(made)
            made.wait_for_steps(20)
            seconds = time.perf_counter() - begin
            flows, trainings = len(made.serving.processes(FLOW)), len(made.serving.processes(TRAINING))
            state = made.api.run(run)["state"]["name"]
            made.api.cancel(run)
            end = made.api.ended(run)["type"]
            idle = seconds_until(made.is_idle, 30)
            kept = made.step() > before
            rows.append(
                [name, f"{seconds:.0f}", state, "yes" if kept else "NO", str(flows + trainings - 2), end, f"{idle:.1f}"]
            )
            print(rows[-1], flush=True)
        head = "fault|seconds until it trains again|state then|continues from its checkpoint|extra processes"
        table("Faults", f"{head}|cancelled then|seconds to no process", rows)


def _serve_dies(made: Pipeline) -> None:
    made.serving.kill(SERVE)
    made.serving.process.wait()
    gone = seconds_until(lambda: not made.serving.processes(), 60)
    print(f"after kill -9 of make serve, no process is left within {gone:.1f} s")
    made.serving.start_again()


def _server_dies(made: Pipeline) -> None:
    """make serve starts it again, and the training does not notice."""
    training = made.serving.processes(TRAINING)
    made.serving.kill(SERVER)
    made.serving.wait()
    assert made.serving.processes(TRAINING) == training


def _all_die(made: Pipeline) -> None:
    made.serving.kill()
    made.serving.process.wait()
    made.serving.start_again()


def _lock_database(made: Pipeline) -> None:
    with sqlite3.connect(made.serving.home / "prefect.db", timeout=60, isolation_level=None) as database:
        database.execute("BEGIN EXCLUSIVE")
        time.sleep(30)
        database.execute("ROLLBACK")


FAULTS: dict[str, Callable[[Pipeline], object]] = {
    "kill -9 of the training": lambda made: made.serving.kill(TRAINING),
    "kill -9 of the run": lambda made: made.serving.kill(FLOW),
    "database locked for 30 s": _lock_database,
    "kill -9 of the Prefect server": _server_dies,
    "kill -9 of make serve, started again": _serve_dies,
    "kill -9 of everything, started again": _all_die,
}


def schedule(count: int) -> None:
    with pipeline() as made:
        deployment = made.api.deployment("prepare_data")["id"]
        made.api.ended(made.api.start("prepare_data", made.settings()))
        late = []
        for number in range(count):
            due = datetime.now(UTC) + timedelta(seconds=75)  # the server looks for schedules once a minute
            content = {"interval": 10**6 + number, "anchor_date": due.isoformat()}
            body = {"active": True, "schedule": content, "parameters": settings_form(made.settings())}
            made.api.call(f"/deployments/{deployment}/schedules", [body])
            run = made.api.wait(lambda due=due: _due_run(made, deployment, due))
            made.api.ended(run)
            late.append((datetime.fromisoformat(made.api.run(run)["start_time"]) - due).total_seconds())
        table(
            "From the time of a schedule to the start of its run (seconds)",
            "runs|median|least|most",
            [[str(count), *spread(late)]],
        )


def _due_run(made: Pipeline, deployment: str, due: datetime) -> str | None:
    runs = made.api.call("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment]}}})
    expected = {run["id"]: datetime.fromisoformat(run["expected_start_time"]) for run in runs if run["auto_scheduled"]}
    return next((run for run, time in expected.items() if abs((time - due).total_seconds()) < 1), None)


SECTIONS: dict[str, tuple[Callable[[int], None], int]] = {
    "signal": (signals, 10),
    "cancel": (cancels, 20),
    "start": (starts, 3),
    "overhead": (overhead, 3),
    "outage": (outage, 3),
    "faults": (faults, 1),
    "schedule": (schedule, 5),
}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="+", choices=SECTIONS)
    parser.add_argument("--count", type=int, help="of what the section counts, if not its own number")
    options = parser.parse_args()
    for section in options.sections:
        run, number = SECTIONS[section]
        run(options.count or sized(number, 1))
