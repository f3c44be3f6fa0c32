"""Temporary names that carry their owner, so that what a dead process left can be removed.

A name holds a hash of the host, the boot and the process number. Only the host of a dead owner removes it.
"""

import os
import shutil
import socket
import time
from pathlib import Path

from blake3 import blake3

_PREFIX = ".tmp-"


def temporary_name(name: str) -> str:
    """A hidden name that this process owns."""
    host = blake3(socket.gethostname().encode()).hexdigest(4)
    return f"{_PREFIX}{host}-{boot_id()[:8]}-{os.getpid()}-{name}"


def stale_temp(folder: Path) -> list[Path]:
    """Temporary files and folders in ``folder`` whose owner, a process of this host, is dead."""
    host, boot, _ = temporary_name("").removeprefix(_PREFIX).split("-")[:3]
    found = []
    for path in folder.glob(f"{_PREFIX}{host}-*"):
        _, owner_boot, pid = path.name.removeprefix(_PREFIX).split("-")[:3]
        if owner_boot != boot or not is_alive(int(pid)):
            found.append(path)
    return found


def remove_stale_temp(folder: Path) -> None:
    """Remove what ``stale_temp`` lists."""
    for path in stale_temp(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Delete a folder. It gets a temporary name first, so no reader sees it half deleted."""
    aside = folder.parent / temporary_name(f"removed-{time.monotonic_ns()}-{folder.name}")
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def is_alive(pid: int) -> bool:
    """True if this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def boot_id() -> str:
    """An id of the host's present boot. Process numbers count within one boot."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
