"""Files that are replaced whole, temporary names, and hashes of content.

A temporary name holds a hash of the host, the boot and the process number of its owner. So what a dead process left can
be removed, by its own host only.
"""

import hashlib
import os
import shutil
import socket
import time
from pathlib import Path

from blake3 import blake3

from lmcore.errors import no_space_named, owner_named

DIGEST_BYTES = 16
"""Length of a BLAKE3 digest that names content."""
_PREFIX = ".tmp-"


def write_file(path: Path, content: bytes) -> None:
    """Replace the file atomically: after a crash it holds the old bytes or the new bytes."""
    temporary = path.parent / temporary_name(path.name)
    with no_space_named(path.parent), owner_named(path.parent):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Write a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hash_file(path: Path) -> str:
    """The BLAKE3 hash of a file, 32 hexadecimal digits."""
    with open(path, "rb") as file:
        digest: blake3 = hashlib.file_digest(file, blake3)  # type: ignore[arg-type, assignment]
    return digest.hexdigest(DIGEST_BYTES)


def hash_text(utf8: bytes) -> int:
    """A 64-bit hash of a text: the first bytes of its BLAKE3 digest, lowest byte first."""
    return int.from_bytes(blake3(utf8).digest(8), "little")


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


def remove_stale_temp(*folders: Path) -> None:
    """Remove what ``stale_temp`` lists for each folder."""
    for path in (path for folder in folders for path in stale_temp(folder)):
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
