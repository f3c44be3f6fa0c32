"""Whoever asks a run to end is heard."""

from tests.conftest import start

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
