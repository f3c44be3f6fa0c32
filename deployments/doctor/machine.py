"""The doctor's checks of this machine: packages, store, disk, GPU, locks."""

import json
import os
import shutil
import socket
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from deployments.doctor.finding import Finding
from lmcore.errors import LMError
from lmcore.markdown import byte_size
from lmcore.store.files import boot_id, is_alive, remove_stale_temp, stale_temp
from lmcore.store.layout import check_store
from lmcore.store.locks import is_locked

LEAST_FREE_BYTES = 5 * 10**9
"""About ten checkpoints of the preset base."""
_GPUS = Path("/proc/driver/nvidia/gpus")


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
    if differing:
        return Finding("versions", "; ".join(differing), f"python -m pip install -c {constraints} -e .")
    return Finding("versions", f"as in {constraints.name}")


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

    return Finding("half-written", f"left by dead processes: {_some(found)}", "--fix removes it", fix)


def disk(folder: Path, least: int = LEAST_FREE_BYTES) -> Finding:
    """Whether enough bytes are free where ``folder`` is."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    fact = f"{byte_size(free)} are free for {folder}"
    if free < least:
        return Finding("disk", fact, f"free {byte_size(least - free)}: old runs are in {folder / 'runs'}")
    return Finding("disk", fact)


def gpu(devices: Path = _GPUS) -> Finding:
    """Whether torch can use the GPUs that the driver shows."""
    there = len(list(devices.glob("*")))
    usable = torch.cuda.device_count()
    fact = f"{there} in this machine, torch {torch.__version__} can use {usable}"
    if there and not usable and torch.version.cuda is None:
        return Finding("GPU", fact, "this torch is built for the CPU: install the build for CUDA")
    if usable < there and "CUDA_VISIBLE_DEVICES" not in os.environ:
        return Finding("GPU", fact, "nvidia-smi says whether the driver fits the CUDA of this torch")
    return Finding("GPU", fact)


def locks(files: list[Path]) -> Finding:
    """Whether locks are held although their owners are dead.

    The kernel frees a lock with its holder, so a lock file that nobody holds is free whatever its content. A lock
    outlives its owner only if a forked process still has the file open.
    """
    held = [file for file in files if is_locked(file)]
    stale = [file for file in held if not _owner_lives(file)]
    if not stale:
        return Finding("locks", f"{len(held)} held, each by a living process")
    told = "; ".join(f"{file} is held by {_holders(file)}, not by its dead owner" for file in stale)
    return Finding("locks", told, "inspect these processes (ps), and kill -TERM those that are no longer needed")


def lock_files(store: Path, home: Path) -> list[Path]:
    """The lock files of runs, models, retrainings, cached tasks, and this machine's GPUs."""
    return [
        *store.glob("runs/*/lock"),
        *store.glob("models/*/lock"),
        *store.glob("models/*/retraining.lock"),
        *home.glob("locks/*"),
        *Path(tempfile.gettempdir()).glob("lm-gpu-*.lock"),
    ]


def _owner_lives(file: Path) -> bool:
    """Whether the owner lives. Also true if that is unknown: on another machine, or before it wrote its name."""
    try:
        owner = json.loads(file.read_text())
        here = (owner["host"], owner["boot"]) == (socket.gethostname(), boot_id())
        return not here or is_alive(int(owner["pid"]))
    except (ValueError, LookupError, TypeError):
        return True


def _holders(file: Path) -> str:
    """The processes with the file open, as far as this user can see them."""
    found = {link.parts[2] for link in Path("/proc").glob("[0-9]*/fd/*") if _leads_to(link, file)}
    return ", ".join(f"process {pid}" for pid in sorted(found)) or "a process of another user"


def _leads_to(link: Path, file: Path) -> bool:
    try:
        return os.readlink(link) == str(file.resolve())
    except OSError:
        return False


def _some(paths: list[Path]) -> str:
    rest = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(map(str, paths[:3])) + rest
