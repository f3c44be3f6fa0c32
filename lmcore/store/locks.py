"""Locks are flock(2) locks on files: the kernel frees one when the process that holds it ends, however it ends."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Literal

from lmcore.errors import RunError, StoppedError, owner_named
from lmcore.store.strict_json import to_json
from lmcore.store.temporary import boot_id

_SECONDS_BETWEEN_TRIES = 0.1
_log = logging.getLogger(__name__)


@contextmanager
def locked(
    path: Path,
    when_locked: Literal["wait", "refuse"],
    should_stop: Callable[[], bool] = lambda: False,
    what: str = "",
    tell: Callable[[str], object] = _log.info,
) -> Iterator[None]:
    """Hold the lock file ``path``; it says who holds it. ``should_stop`` is asked while waiting.

    ``what`` is what it stands for, if not the folder it is in. ``tell`` hears for whom it waits.

    Raises RunError when another process holds it and ``when_locked`` is "refuse", StoppedError when
    ``should_stop`` said so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    what = what or str(path.parent)
    with _opened(path) as file:
        if not _lock(file):
            file.seek(0)
            owner = file.read().strip() or "another process"
            if when_locked == "refuse":
                raise RunError(f"{what} is in use by {owner}: wait for it to end, or start with --when_locked wait")
            tell(f"waiting: {what} is in use by {owner}")
            # A blocking flock would begin again after every signal whose handler only takes a note.
            while not _lock(file):
                if should_stop():
                    raise StoppedError(f"stopped on request while {what} was in use by {owner}")
                time.sleep(_SECONDS_BETWEEN_TRIES)
        if file.writable():
            file.seek(0)
            file.truncate()
            owner_now = {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot_id()}
            file.write(to_json(owner_now))
            file.flush()
        yield


@contextmanager
def in_use(store: Path) -> Iterator[None]:
    """Make new things in a store from old ones, as many at a time as like to; nothing is taken away meanwhile."""
    with _opened(_use(store)) as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def out_of_use(store: Path) -> Iterator[None]:
    """Take things away from a store. Raises RunError while somebody makes new ones."""
    with _opened(_use(store)) as file:
        if not _lock(file):
            raise RunError(f"store {store} is in use: text is being tokenized, or things are being removed. Try later")
        yield


def _use(store: Path) -> Path:
    store.mkdir(parents=True, exist_ok=True)
    return store / "in_use"


def _opened(path: Path) -> IO[str]:
    """Another user's lock is opened for reading, which flock(2) is content with, if its folder is everybody's.

    /tmp is, where the locks of GPUs are. Raises PermissionError where nothing could be written in the folder either.
    """
    try:
        with owner_named(path):
            return open(path, "a+")
    except PermissionError:
        if path.exists() and os.access(path.parent, os.W_OK):
            return open(path)
        raise


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
