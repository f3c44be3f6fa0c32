"""Whoever asks a run to end is heard."""

import os
import signal
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Cancelling, Running

from lmcore import clock
from tasks import run_process
from tests.conftest import start, wait_until
from tests.leftovers import carriers

_LOSES_A_SIGNAL = """
import os, signal, sys, time, weakref
from prefect.exceptions import TerminationSignal
from tasks.run_process import keep_terminations

def raise_it(number, frame):
    raise TerminationSignal(signal=number)

class Thing:
    pass

signal.signal(signal.SIGTERM, raise_it)
keep_terminations()
thing = Thing()
reference = weakref.ref(thing, lambda gone: os.kill(os.getpid(), signal.SIGTERM))
try:
    del thing
    print("lost", flush=True)
    time.sleep(60)
except TerminationSignal:
    print("and heard")
"""


def test_a_signal_that_python_loses_in_a_callback_comes_again() -> None:
    process = start("-c", _LOSES_A_SIGNAL)
    assert process.communicate(timeout=90)[0] == "lost\nand heard\n"


_CALLS_A_FLOW = "from prefect import flow; from flows.prepare_data import prepare_data; prepare_data(text=['/nowhere'])"


@pytest.mark.flows
def test_a_program_that_is_killed_while_its_temporary_server_starts_leaves_none(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    program = start("-c", _CALLS_A_FLOW, env=environment | {"PREFECT_HOME": str(tmp_path)})

    def servers() -> list[int]:
        found = carriers("PREFECT_HOME", str(tmp_path))
        return [pid for pid, command in found.items() if "create_app" in command]

    wait_until(lambda: bool(servers()), "the server")
    program.kill()
    program.communicate()
    wait_until(lambda: not servers(), "the end of the server")


@pytest.mark.flows
def test_from_python_a_server_that_does_not_answer_is_an_error_within_seconds(tmp_path: Path) -> None:
    named = {"PREFECT_API_URL": "http://127.0.0.1:9/api", "PREFECT_HOME": str(tmp_path)}
    _, error = start("-c", _CALLS_A_FLOW, env=os.environ | named).communicate(timeout=90)
    last = error.splitlines()[-1]
    assert last.startswith("lmcore.errors.ConfigError: PREFECT_API_URL: the Prefect server http://127.0.0.1:9/api does")


@pytest.mark.parametrize(
    ("state", "age", "missed"),
    [(Cancelling(), 0, False), (Cancelling(), 60, True), (Cancelled(), 0, True), (Running(), 60, False)],
)
def test_a_cancel_that_is_older_than_an_end_takes_was_missed(state: State, age: int, missed: bool) -> None:
    """Prefect's runners stop listening when the server is away for some seconds, and such a run trained on."""
    # The parameters are as old as the collection of the tests.
    aged = state.model_copy(update={"timestamp": clock.utc() - timedelta(seconds=age)})
    assert run_process._is_missed_cancel(aged) is missed


def test_a_run_ends_itself_when_it_finds_that_it_was_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([ConnectionError("the server is away"), Running(), Cancelled()])

    class Client:
        def __enter__(self) -> "Client":
            return self

        def __exit__(self, *_: object) -> None: ...

        def read_flow_run(self, run: UUID) -> SimpleNamespace:
            if isinstance(state := next(states), ConnectionError):
                raise state
            return SimpleNamespace(state=state)

    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    monkeypatch.setattr(run_process, "get_client", lambda **_: Client())
    monkeypatch.setattr(run_process, "_SECONDS_BETWEEN_STATES", 0)
    try:
        run_process._watch_for_cancel(run := uuid4())
        wait_until(lambda: bool(told), "the signal")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run in run_process._cancelled
