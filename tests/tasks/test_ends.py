"""Whoever asks a run to end is heard."""

import os
from pathlib import Path

import pytest

from tests.conftest import start, wait_until
from tests.leftovers import carriers

_LOSES_A_SIGNAL = """
import os, signal, sys, time, weakref
from prefect.exceptions import TerminationSignal
from tasks.server import keep_terminations

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
