"""The rules for caching and retries, and the states of runs that end in their own way.

lmcore finds finished work in the store by itself. Prefect's cache shows that to people: ``OnDisk`` names the work of a
task by its content, and reports "Cached" only when the output on disk verifies. An output that was deleted or damaged
is made again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from prefect import Flow, Task, get_run_logger
from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.context import TaskRunContext
from prefect.results import ResultStore, get_result_store
from prefect.states import Cancelled, Completed, Failed, Scheduled
from prefect.tasks import exponential_backoff
from prefect.transactions import IsolationLevel

from lmcore.errors import LMError, StoppedError, is_transient
from lmcore.settings.section import fingerprint
from lmcore.store.artifacts import FORMAT_VERSION
from lmcore.store.outputs import Output
from lmcore.store.remembered_inputs import Inputs, remember, what_changed
from tasks.locks import FileLocks
from tasks.pages import Page, shown

STARTS = 4
"""Most starts of a deployment's run: the first, and one after each of three crashes."""

_LOCKS = FileLocks()


@dataclass
class OnDisk(CachePolicy):
    """Cache by content, while the output on disk verifies. Of equal tasks at a time one works and the others wait.

    ``content`` returns, from the task's arguments, everything that the output depends on, and the store's folder
    (``store``). With ``respect_fresh``, a task whose ``config`` argument sets ``fresh`` is always run.
    """

    content: Callable[..., Inputs] = dict
    respect_fresh: bool = False

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        name = task_ctx.task.name
        try:
            content = {"format": FORMAT_VERSION, **self.content(**inputs)}
        except LMError:
            return None  # the task is about to raise the same error, as its own failure
        key = f"{name}-{fingerprint(content)}"
        logger = get_run_logger()
        if _LOCKS.is_locked(key):
            if "config" in inputs and inputs["config"].when_locked == "refuse":
                return None  # the run's own lock refuses; other outputs are equal when made twice
            logger.info("%s: waiting for another run that makes the same", name)
        _LOCKS.acquire_lock(key)  # released by Prefect's transaction
        is_fresh = self.respect_fresh and inputs["config"].fresh
        reason = _reason_to_run(get_result_store(), key, is_fresh, lambda: what_changed(name, content))
        if reason:
            logger.info("%s: ran because %s", name, reason)
            remember(name, content)
        else:
            logger.info("%s: cached because its inputs are unchanged and its output is whole", name)
        return key


def _reason_to_run(records: ResultStore, key: str, is_fresh: bool, changes: Callable[[], str]) -> str:
    """Empty when the recorded output may be used. Otherwise its record, if there is one, expires."""
    if not records.exists(key):
        return changes()
    if not (reason := "fresh was asked for" if is_fresh else _fault(records, key)):
        return ""
    past: Any = datetime.fromtimestamp(0, UTC)
    records.write(obj=None, key=key, expiration=past)
    return reason


def _fault(records: ResultStore, key: str) -> str:
    """Why a recorded output cannot be used; empty when it can."""
    try:
        output: Output | None = records.read(key).result
        if output is None:
            return "it was stopped before its end"
        output.verify()
    except LMError as error:
        return f"its earlier output is gone or damaged: {error}"
    except OSError as error:
        return f"its output cannot be read now: {error}"
    except Exception as error:
        return f"Prefect's record of it cannot be read ({type(error).__name__})"
    return ""


def should_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """True for a failure that may not happen again (Prefect's retry_condition_fn)."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


RETRIED: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": should_retry,
}
"""For tasks that read or write disks and networks."""
NEVER_CACHED: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "result_serializer": "json"}
"""For tasks whose input may have changed, or that find their finished work in the store."""


def found(output: Output) -> Any:
    """The state of a task whose output was in the store, although Prefect has no record of it."""
    return Completed(name="Cached", message="it was in the store", data=output)


def stopped(stop: StoppedError) -> Any:
    """The state of a task or flow that a signal stopped: a kind of Cancelled, not a failure."""
    return Cancelled(name="Stopped", message=str(stop))


def ended(name: str, message: str, result: Any) -> Any:
    """The state of a run that completed, by the name that says what came of it. Who calls the flow gets ``result``."""
    return Completed(name=name, message=message, data=result)


def failed(name: str, error: Exception) -> Any:
    """The state of a run that failed, by the name that says why. Who calls the flow gets the error."""
    return Failed(name=name, message=str(error), data=error)


def restart_after_crash(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Schedule a deployment's run again with its parameters (a flow's hook on_crashed); it resumes from the store.

    The process that started the run calls this when the run dies, and the run itself when it is asked to end. A run
    that never began is left alone, since starts are counted.
    """
    with get_client(sync_client=True) as client:
        now = client.read_flow_run(flow_run.id)
        if now.deployment_id and now.state_type == StateType.CRASHED and 0 < now.run_count < STARTS:
            why = f"starting again after crash {now.run_count} of at most {STARTS - 1}"
            client.set_flow_run_state(now.id, Scheduled(message=why))


def stage(content: Callable[..., Inputs], respect_fresh: bool = False, page: Page | None = None) -> dict[str, Any]:
    """The options of a task that leaves an output in the store; ``page`` shows the output, cached or not."""
    return {
        "cache_policy": OnDisk(
            content=content,
            respect_fresh=respect_fresh,
            lock_manager=_LOCKS,
            isolation_level=IsolationLevel.SERIALIZABLE,
        ),
        "persist_result": True,
        "result_serializer": "json",
        **RETRIED,
        "on_completion": [] if page is None else [shown(page)],
    }
