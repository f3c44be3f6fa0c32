"""Locks on files (flock): the kernel frees one when the process that holds it ends, however it ends.

Any number of processes hold a shared lock at a time, and one an exclusive lock. The file says who holds an exclusive
one: host, process and boot.
"""

import fcntl
import logging
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, Literal, NamedTuple

from lmcore.errors import RunError, StoppedError, owner_named
from lmcore.store.files import boot_id
from lmcore.store.json_files import from_json, to_json

_SECONDS_BETWEEN_TRIES = 0.1
_ALL_READ = 0o444
_log = logging.getLogger(__name__)


class LockOwner(NamedTuple):
    """The process that holds an exclusive lock."""

    host: str
    pid: int
    boot: str


@contextmanager
def locked(
    path: Path,
    when_locked: Literal["wait", "refuse"],
    should_stop: Callable[[], bool] = lambda: False,
    what: str = "",
    tell: Callable[[str], object] = _log.info,
    shared: bool = False,
    advice: str = "try again when it ends, or set when_locked to wait where a command has it",
) -> Iterator[None]:
    """Hold the lock file ``path``. ``should_stop`` is asked while waiting.

    ``what`` names what is locked in messages, by default the folder of the lock file; ``advice`` ends a refusal.
    ``tell`` gets a line when the lock must be waited for. Raises RunError when another process holds it and
    ``when_locked`` is "refuse", StoppedError when ``should_stop`` returns True.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    what = what or str(path.parent)
    with _opened(path) as file:
        if not _try(file, shared):
            holder = f"{what} is in use by {_holder(file)}"
            if when_locked == "refuse":
                raise RunError(f"{holder}: {advice}")
            tell(f"waiting: {holder}")
            # A blocking flock would start again after each signal whose handler only takes a note.
            while not _try(file, shared):
                if should_stop():
                    raise StoppedError(f"stopped on request while {holder}")
                time.sleep(_SECONDS_BETWEEN_TRIES)
        if file.writable():
            file.truncate(0)
            if not shared:
                file.write(to_json(LockOwner(socket.gethostname(), os.getpid(), boot_id())._asdict()))
                file.flush()
        yield


def store_locked(store: Path, shared: bool) -> AbstractContextManager[None]:
    """Hold the lock of a store: shared to add to it, which waits, exclusive to remove from it, which does not.

    Raises as ``locked`` does.
    """
    return locked(store / "in_use", "wait" if shared else "refuse", what=f"store {store}", shared=shared)


def is_locked(path: Path) -> bool:
    """True if a process holds an exclusive lock on the file; False for a file of another user, which is unknown."""
    try:
        with open(path) as file:
            return not _try(file, shared=True)
    except (FileNotFoundError, PermissionError):
        return False


def lock_owner(text: str) -> LockOwner | None:
    """The owner that a lock file names; None if it names nobody, as one that is shared."""
    try:
        owner = from_json(text)
        return LockOwner(str(owner["host"]), int(owner["pid"]), str(owner["boot"]))
    except (ValueError, LookupError, TypeError):
        return None


def _holder(file: IO[str]) -> str:
    """The process that holds a lock, in words."""
    file.seek(0)
    owner = lock_owner(file.read())
    return f"process {owner.pid} on {owner.host}" if owner else "another process"


def _opened(path: Path) -> IO[str]:
    """The open lock file; another user's is opened for reading, which is enough to lock it, where all may write.

    /tmp is such a folder, and holds the locks of GPUs. Raises PermissionError where the folder may not be written.
    """
    try:
        with owner_named(path):
            return open(path, "a+", opener=_open_for_all)
    except PermissionError:
        if path.exists() and os.access(path.parent, os.W_OK):
            return open(path)
        raise


def _open_for_all(path: str, flags: int) -> int:
    """The descriptor of a file. Where all may write the folder, all may read the file, and so lock it."""
    descriptor = os.open(path, flags, 0o666)
    about = os.fstat(descriptor)
    if about.st_uid == os.geteuid() and os.stat(os.path.dirname(path) or ".").st_mode & stat.S_IWOTH:
        os.fchmod(descriptor, about.st_mode | _ALL_READ)
    return descriptor


def _try(file: IO[str], shared: bool) -> bool:
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
