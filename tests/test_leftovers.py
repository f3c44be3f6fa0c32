"""What a session of tests left running ends with it."""

import os
import signal
import subprocess
import sys

from tests.conftest import REPOSITORY, wait_until
from tests.leftovers import MARK, carriers

_SESSION = """
import subprocess, sys, time
from tests import leftovers
leftovers.watch()
subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
print(flush=True)
time.sleep(600)
"""


def test_a_killed_session_leaves_no_process() -> None:
    with subprocess.Popen([sys.executable, "-c", _SESSION], cwd=REPOSITORY, stdout=subprocess.PIPE) as session:
        assert session.stdout is not None
        session.stdout.readline()
        wait_until(lambda: len(carriers(MARK, str(session.pid))) == 3, "its processes")
        session.kill()
    wait_until(lambda: not carriers(MARK, str(session.pid)), "their end")


def test_children_of_tests_hear_signals() -> None:
    code = "import signal as s; print(*(s.getsignal(n) == s.SIG_IGN for n in (s.SIGINT, s.SIGTERM, s.SIGHUP)))"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == ["False"] * 3
    assert os.environ[MARK] == str(os.getpid())
