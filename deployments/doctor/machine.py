"""The doctor's checks of this machine: packages, store, disk, GPU, locks."""

import os
import shutil
import socket
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from deployments.doctor import Finding
from lmcore.errors import LMError
from lmcore.markdown import byte_size
from lmcore.model.device import GPU_LOCKS
from lmcore.store.files import boot_id, is_alive, remove_stale_temp, stale_temp
from lmcore.store.layout import check_store
from lmcore.store.locks import is_locked, lock_owner

LEAST_FREE_BYTES = 5 * 10**9
"""About ten checkpoints of the preset base."""
GPUS = Path("/proc/driver/nvidia/gpus")


def versions(constraints: Path) -> Finding:
    """Whether installed packages are those of constraints.txt, which were tested together."""
    if not constraints.exists():
        return Finding("versions", f"{constraints} is not on this machine, so nothing is compared")
    differing = []
    for line in constraints.read_text().splitlines():
        name, _, tested = line.partition("==")
        found = _installed(name)
        # +cpu and +cu130 are builds of the same version.
        if tested and found and found.partition("+")[0] != tested.partition("+")[0]:
            differing.append(f"{name} is {found}, tested was {tested}")
    remedy = f"python -m pip install -c {constraints} -e ." if differing else ""
    return Finding("versions", "; ".join(differing) or f"as in {constraints.name}", remedy)


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def store(folder: Path) -> Finding:
    """Whether the store can be written and has a format that this program knows."""
    try:
        check_store(folder)
    except LMError as error:
        return Finding("store", str(error), "correct this, or set LM_STORE to another folder")
    return Finding("store", f"{folder} can be written")


def half_written(store: Path) -> Finding:
    """Whether dead processes left temporary files in the store."""
    folders = [store, *store.glob("*/"), *store.glob("*/*/"), *store.glob("*/*/*/")]
    found = [path for folder in folders for path in stale_temp(folder)]
    if not found:
        return Finding("half-written", "nothing")

    def fix() -> None:
        remove_stale_temp(*{path.parent for path in found})

    some = ", ".join(map(str, found[:3])) + (f" and {len(found) - 3} more" if found[3:] else "")
    return Finding("half-written", f"left by dead processes: {some}", "--fix removes it", fix)


def disk(folder: Path) -> Finding:
    """Whether enough bytes are free where ``folder`` is."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    missing = LEAST_FREE_BYTES - free
    remedy = f"free {byte_size(missing)}: old runs are in {folder / 'runs'}" if missing > 0 else ""
    return Finding("disk", f"{byte_size(free)} are free for {folder}", remedy)


def gpu() -> Finding:
    """Whether torch can use the GPUs that the driver shows."""
    there, usable, remedy = len(list(GPUS.glob("*"))), torch.cuda.device_count(), ""
    if there and not usable and torch.version.cuda is None:
        remedy = "this torch is built for the CPU: install the build for CUDA"
    elif usable < there and "CUDA_VISIBLE_DEVICES" not in os.environ:
        remedy = "nvidia-smi says whether the driver fits the CUDA of this torch"
    return Finding("GPU", f"{there} in this machine, torch {torch.__version__} can use {usable}", remedy)


def locks(files: list[Path]) -> Finding:
    """Whether locks are held although their owners are dead.

    The kernel frees a lock with its holder, so a lock file that nobody holds is free whatever its content. A lock
    outlives its owner only if a forked process still has the file open.
    """
    held = [file for file in files if is_locked(file)]
    stale = [file for file in held if not _owner_lives(file)]
    if not stale:
        return Finding("locks", f"{len(held)} held, each by a living process")
    fact = "; ".join(f"{file} is held by {_holders(file)}, not by its dead owner" for file in stale)
    return Finding("locks", fact, "inspect these processes (ps), and kill -TERM those that are no longer needed")


def lock_files(store: Path, home: Path) -> list[Path]:
    """The lock files of runs, models, retrainings, cached tasks, and this machine's GPUs."""
    return [
        *store.glob("runs/*/lock"),
        *store.glob("models/*/lock"),
        *store.glob("models/*/retraining.lock"),
        *home.glob("locks/*"),
        *GPU_LOCKS.glob("lm-gpu-*.lock"),
    ]


def _owner_lives(file: Path) -> bool:
    """Whether the owner lives. Also true if that is unknown: on another machine, or before it wrote its name."""
    owner = lock_owner(file.read_text())
    is_here = owner is not None and (owner.host, owner.boot) == (socket.gethostname(), boot_id())
    return owner is None or not is_here or is_alive(owner.pid)


def _holders(file: Path) -> str:
    """The processes with the file open, as far as this user can see them."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if os.readlink(link) == str(file.resolve()):
                found.add(link.parts[2])
    return ", ".join(f"process {pid}" for pid in sorted(found)) or "a process of another user"
