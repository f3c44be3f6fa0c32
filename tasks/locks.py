"""The locks of Prefect's cache keys, so that equal work is done once; those of runs; and the slots of a GPU."""

import atexit
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import ClassVar
from uuid import UUID

from httpx import HTTPError, HTTPStatusError
from prefect import get_run_logger
from prefect.client.orchestration import get_client
from prefect.concurrency._asyncio import ConcurrencySlotAcquisitionError
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound
from prefect.locking.protocol import LockManager
from prefect.runtime import deployment
from prefect.settings import PREFECT_HOME

from lmcore.errors import RunError
from lmcore.settings.config import RunConfig
from lmcore.store.locks import is_locked, locked

GPU_LIMIT = "gpu"
"""The global concurrency limit for the number of GPUs that runs of deployments use at a time."""

_RUN = "flow-run-"
_SECONDS_OF_LEASE = 60
"""Prefect's shortest lease: the slot of a killed training stays taken for so long."""


class FileLocks(LockManager):
    """Prefect's locks as files in its home. The kernel frees one when its process ends, however it ends.

    The holder is the thread, whatever name Prefect gives it. So a cache policy takes the lock before it looks at the
    record, and Prefect's transaction, in the same thread, holds it already. All managers of a process hold the same
    locks: ``flow.serve()`` copies a flow into the process of its run, and with it the manager of its tasks.
    """

    _held: ClassVar[dict[str, tuple[int, ExitStack]]] = {}

    def acquire_lock(
        self, key: str, holder: str = "", acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        """Wait without limit; return at once for the holder itself."""
        if not self.is_lock_holder(key):
            lock = ExitStack()
            lock.enter_context(locked(_path(key), "wait", what=key))
            self._held[key] = (threading.get_ident(), lock)
        return True

    def release_lock(self, key: str, holder: str = "") -> None:
        if self.is_lock_holder(key):
            self._held.pop(key)[1].close()

    def is_locked(self, key: str) -> bool:
        return key in self._held or is_locked(_path(key))

    def is_lock_holder(self, key: str, holder: str = "") -> bool:
        return key in self._held and self._held[key][0] == threading.get_ident()

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        with locked(_path(key), "wait", what=key):
            return True

    async def aacquire_lock(
        self, key: str, holder: str = "", acquire_timeout: float | None = None, hold_timeout: float | None = None
    ) -> bool:
        return self.acquire_lock(key)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return self.wait_for_lock(key)


def _path(key: str) -> Path:
    home: Path = PREFECT_HOME.value()
    return home / "locks" / key


def run_lock(run: UUID) -> Path:
    """The lock of a flow run. While it is held the run's process lives; a file that nobody holds is of a dead one."""
    return _path(f"{_RUN}{run}")


@cache
def hold_run(run: UUID) -> ExitStack:
    """Hold the lock of a flow run until this process ends. Keep a reference to it."""
    held, path = ExitStack(), run_lock(run)
    held.enter_context(locked(path, "refuse", what=f"the flow run {run}"))
    atexit.register(path.unlink, missing_ok=True)
    return held


def runs_here() -> dict[UUID, bool]:
    """The flow runs that began in this PREFECT_HOME and did not end by themselves, and whether their processes live."""
    return {UUID(path.name.removeprefix(_RUN)): is_locked(path) for path in _path("").glob(f"{_RUN}*")}


@contextmanager
def gpu_slot(config: RunConfig, count: int = 1) -> Iterator[None]:
    """Hold a slot of the limit "gpu" for each GPU that a deployment's run uses, or all slots if there are fewer.

    A run that uses the CPU by its settings holds none.

    A server that is away for a while costs the slot, not the training: lmcore's lock of the GPU remains. Raises
    RunError when all slots are taken and config.when_locked is "refuse", or when the limit does not exist, and
    ConnectionError when the server does not answer.
    """
    if not deployment.id or config.train.device == "cpu":
        yield
        return
    count = min(count, _all_slots())
    get_run_logger().info("asking for %d of the slots of the concurrency limit %r", count, GPU_LIMIT)
    slot = concurrency(
        GPU_LIMIT,
        occupy=count,
        max_retries=0 if config.when_locked == "refuse" else None,
        lease_duration=_SECONDS_OF_LEASE,
        strict=True,
        raise_on_lease_renewal_failure=False,
    )
    with ExitStack() as stack:
        try:
            stack.enter_context(slot)
        except ConcurrencySlotAcquisitionError as error:
            raise _explained(error) from error
        yield


def _all_slots() -> int:
    """The number of slots, but at least 1: a limit of 0 lets nobody through."""
    with get_client(sync_client=True) as client:
        try:
            return max(1, client.read_global_concurrency_limit_by_name(GPU_LIMIT).limit)
        except ObjectNotFound:
            raise RunError(
                f"there is no concurrency limit {GPU_LIMIT!r}: create it with prefect gcl create gpu --limit 1"
            ) from None
        except HTTPError as error:
            raise ConnectionError(str(error)) from error


def _explained(error: ConcurrencySlotAcquisitionError) -> Exception:
    cause = error.__cause__
    if isinstance(cause, HTTPStatusError) and cause.response.status_code == HTTPStatus.LOCKED:
        return RunError(
            f"every slot of the concurrency limit {GPU_LIMIT!r} is taken by another run: wait for it to end, "
            "or set when_locked to wait"
        )
    return ConnectionError(str(error))
