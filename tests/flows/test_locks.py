"""Equal work is done once, by whoever is first; a lock ends with its holder; slots are asked for strictly."""

import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import pytest
from prefect import flow, get_run_logger, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.settings import PREFECT_API_URL, PREFECT_HOME

from lmcore.errors import RunError
from lmcore.settings.config import RunConfig
from lmcore.store.outputs import Output
from tasks.locks import GPU_LIMIT, FileLocks, gpu_slot
from tasks.policies import stage
from tests.conftest import start, tiny_config, wait_until

pytestmark = pytest.mark.flows


class Number(Output):
    """Nothing on disk."""

    value: int

    def verify(self) -> None:
        pass


def test_of_two_equal_tasks_at_once_one_works_and_the_other_is_cached(tmp_path: Path) -> None:
    began, go_on, runs = threading.Event(), threading.Event(), list[int]()

    @task(name="count", **stage(lambda: {"store": str(tmp_path)}))
    def count() -> Number:
        runs.append(1)
        began.set()
        go_on.wait(60)
        return Number(value=len(runs))

    @flow(name="counting", result_serializer="json")
    def counting() -> str:
        get_run_logger().info("counting")
        return str(count(return_state=True).name)  # type: ignore[attr-defined]

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(counting)
        assert began.wait(60)
        second = threads.submit(counting)
        wait_until(lambda: second.running(), "the second")
        go_on.set()
        assert [first.result(60), second.result(60)] == ["Completed", "Cached"]
    assert runs == [1]


def test_a_lock_dies_with_its_holder() -> None:
    locks, key = FileLocks(), "a-key"
    code = f"from tasks.locks import FileLocks; locks = FileLocks(); locks.acquire_lock({key!r}); "
    code += "print('held', flush=True); input()"
    environment = {"PREFECT_HOME": str(PREFECT_HOME.value()), "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    child = start("-c", code, env=environment, stdin=-1)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    assert locks.is_locked(key)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert not locks.is_locked(key)


def test_a_lock_is_its_threads_own_until_it_lets_go() -> None:
    locks, key = FileLocks(), "another-key"
    assert locks.acquire_lock(key, "one name")
    assert locks.acquire_lock(key, "another name")
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(locks.is_locked, key).result()
        assert not thread.submit(locks.is_lock_holder, key).result()
        thread.submit(locks.release_lock, key).result()
    assert locks.is_locked(key)
    locks.release_lock(key)
    assert not locks.is_locked(key)


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Prefect says inside a deployment's run."""
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "an-id")


@flow(name="taking a slot", result_serializer="json")
def taking_a_slot(config: RunConfig) -> str:
    with gpu_slot(config):
        return "taken"


@pytest.mark.usefixtures("deployed")
def test_a_slot_is_waited_for_or_refused_and_never_invented(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, tmp_path).model_copy(update={"when_locked": "refuse"})
    with pytest.raises(RunError, match=r"no concurrency limit 'gpu'"):
        taking_a_slot(config)
    with get_client(sync_client=True) as client:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=1))
    assert taking_a_slot(config) == "taken"

    @flow(name="two at once", result_serializer="json")
    def two_at_once() -> None:
        with gpu_slot(config), gpu_slot(config):
            pass

    with pytest.raises(RunError, match="taken by another run"):
        two_at_once()
    assert taking_a_slot(config) == "taken"


def test_no_slot_is_needed_without_a_deployment_or_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with gpu_slot(tiny_config(tmp_path, tmp_path)):
        pass
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", "an-id")
    with gpu_slot(tiny_config(tmp_path, tmp_path, device="cpu")):
        pass


def test_a_copy_of_the_locks_holds_what_they_hold() -> None:
    """``flow.serve()`` sends the flow with its tasks to the process of a run, which then waited for itself."""
    locks, copy = FileLocks(), cloudpickle.loads(cloudpickle.dumps(FileLocks()))
    locks.acquire_lock("copied")
    assert copy.is_lock_holder("copied")
    copy.release_lock("copied")
    assert not locks.is_locked("copied")
