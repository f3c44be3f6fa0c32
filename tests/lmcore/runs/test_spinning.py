"""Threads of a training spin where CPUs are free, sleep where they are not, and do as a person has set."""

import os
import subprocess
import sys

import pytest

from lmcore.runs import spinning as spin
from lmcore.runs.spinning import BUSY_CPUS, FREE_CPUS, idle_cpus, spinning

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is on Linux")


@pytest.mark.parametrize(
    ("idle", "threads", "turns"), [(2.0, "2", FREE_CPUS), (1.2, "2", BUSY_CPUS), (1.2, "1", FREE_CPUS)]
)
def test_the_turns_follow_from_idle_cpus(
    monkeypatch: pytest.MonkeyPatch, idle: float, threads: str, turns: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(spin, "idle_cpus", lambda: idle)
    assert spinning() == {"GOMP_SPINCOUNT": turns}


@pytest.mark.parametrize(("name", "value"), [("GOMP_SPINCOUNT", "5"), ("OMP_WAIT_POLICY", "ACTIVE")])
def test_what_a_person_has_set_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv("GOMP_SPINCOUNT", "1000")
    monkeypatch.setenv(name, value)
    assert spinning() == {}


def test_a_busy_process_is_seen() -> None:
    workers = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        assert idle_cpus(0.5) < 0.5
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
