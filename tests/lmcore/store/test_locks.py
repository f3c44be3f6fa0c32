"""A lock is exclusive or shared, ends with its holder, and can be looked at without taking it."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from lmcore.errors import RunError, StoppedError
from lmcore.store.locks import is_locked, locked, store_locked
from tests.conftest import start

HOLD_LOCK = """
import sys
from pathlib import Path
from lmcore.store.locks import locked
with locked(Path(sys.argv[1]), "wait"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_waits_refuses_and_dies_with_its_owner(tmp_path: Path) -> None:
    lock = tmp_path / "run" / "lock"
    holder = start("-c", HOLD_LOCK, lock, stdin=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(RunError, match=rf"in use by process {holder.pid} on "), locked(lock, "refuse"):
        pass
    waiting = start("-c", HOLD_LOCK, lock, stdin=subprocess.PIPE)
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "held\n"
    waiting.communicate()
    with locked(lock, "refuse"):
        assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_shared_locks_are_held_together_and_keep_an_exclusive_one_out(tmp_path: Path) -> None:
    refusal = pytest.raises(RunError, match=rf"^store {tmp_path} is in use by another process: try again when it ends")
    shared = (store_locked(tmp_path, shared=True) for _ in range(2))
    with next(shared), next(shared), refusal, store_locked(tmp_path, shared=False):
        pass
    with store_locked(tmp_path, shared=False):
        said = list[str]()
        with (
            pytest.raises(StoppedError, match="stopped on request while"),
            locked(tmp_path / "in_use", "wait", lambda: True, shared=True, tell=said.append),
        ):
            pass
        assert f"process {os.getpid()} on" in said[0]


def test_a_look_at_a_lock_does_not_take_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not is_locked(path)
    assert not path.exists()
    with locked(path, "refuse"):
        assert is_locked(path)
        assert f'"pid": {os.getpid()}' in path.read_text()
    assert not is_locked(path)
