"""Every decision about caching and retries, in one place.

The store on disk is the truth and lmcore finds finished work by itself; Prefect's cache is the window through
which people see that. ``OnDisk`` names a task's work by content and never lets Prefect say "cached" unless the
output on disk proves whole, so deleting, truncating or damaging an output makes it again.
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
from prefect.states import Cancelled, Scheduled
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
"""How often a deployment's run is started at most: the first time, and after each of three crashes."""

_LOCKS = FileLocks()


@dataclass
class OnDisk(CachePolicy):
    """Cache by content, as long as the output on disk verifies; of equal tasks at a time, one works and the rest wait.

    ``content`` gives, from the task's arguments, everything the output depends on, by name, the store's folder
    (``store``) included; the format version is added here. A task whose ``config`` argument says ``fresh`` is
    not looked up when ``respect_fresh`` is set.
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
            return None  # the task is about to raise the same, as its own failure
        key = f"{name}-{fingerprint(content)}"
        logger, records = get_run_logger(), get_result_store()
        if _LOCKS.is_locked(key):
            if "config" in inputs and inputs["config"].when_locked == "refuse":
                return None  # the run's own lock is about to refuse; what else is made twice is made alike
            logger.info("%s: waiting for another run that makes the same", name)
        _LOCKS.acquire_lock(key)  # Prefect's transaction lets it go
        if not records.exists(key):
            reason: str | None = what_changed(name, content)
        else:
            reason = self._why_void(records, key, inputs)
        if reason is None:
            logger.info("%s: cached because its inputs are unchanged and its output is whole", name)
        else:
            logger.info("%s: ran because %s", name, reason)
            remember(name, content)
        return key

    def _why_void(self, records: ResultStore, key: str, inputs: dict[str, Any]) -> str | None:
        """None when the recorded output may be used; else the reason, and the record is void."""
        if self.respect_fresh and inputs["config"].fresh:
            reason = "fresh was asked for"
        else:
            try:
                output: Output | None = records.read(key).result
                if output is None:
                    reason = "it was stopped before its end"
                else:
                    output.verify()
                    return None
            except LMError as error:
                reason = f"its earlier output is gone or damaged: {error}"
            except OSError as error:
                reason = f"its output cannot be read now: {error}"
            except Exception as error:
                reason = f"Prefect's record of it cannot be read ({type(error).__name__})"
        past: Any = datetime.fromtimestamp(0, UTC)
        records.write(obj=None, key=key, expiration=past)
        return reason


def worth_a_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect's question after a failure: only what can get better by itself is tried again."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and is_transient(error)


RETRIED: dict[str, Any] = {
    "retries": 2,
    "retry_delay_seconds": exponential_backoff(backoff_factor=5),
    "retry_jitter_factor": 0.5,
    "retry_condition_fn": worth_a_retry,
}
"""Of what reads or writes disks and networks."""
NEVER_CACHED: dict[str, Any] = {"cache_policy": NO_CACHE, "persist_result": False, "result_serializer": "json"}
"""What is looked at may have changed, and what is done is found again in the store."""


def stopped(stop: StoppedError) -> Any:
    """What was asked to end before its end returns this state, a kind of Cancelled, for a result: no failure."""
    return Cancelled(name="Stopped", message=str(stop))


def start_again(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A flow's hook on_crashed: a deployment's run starts again with its parameters, where it had come to.

    The process that started the run calls this when it dies, the run itself when it is told to end. A run that never
    began is left alone: starts are counted, and none would be the last.
    """
    with get_client(sync_client=True) as client:
        now = client.read_flow_run(flow_run.id)
        if now.deployment_id and now.state_type == StateType.CRASHED and 0 < now.run_count < STARTS:
            why = f"starting again after crash {now.run_count} of at most {STARTS - 1}"
            client.set_flow_run_state(now.id, Scheduled(message=why))


def stage(content: Callable[..., Inputs], respect_fresh: bool = False, page: Page | None = None) -> dict[str, Any]:
    """The options of every task that leaves an output in the store; ``page`` shows it, made or found again."""
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
