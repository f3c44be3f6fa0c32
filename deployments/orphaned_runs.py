"""Runs whose process ended together with the process that served them, as after a reboot."""

from collections.abc import Iterable
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Scheduled

from deployments.automations import SILENCE
from lmcore import clock
from lmcore.store.locks import is_locked
from tasks.locks import remove_free_run_locks, run_lock

_OPEN = [StateType.PENDING.value, StateType.RUNNING.value, StateType.CANCELLING.value]


def start_orphaned_runs(deployments: Iterable[str]) -> None:
    """Schedule every run of ``deployments`` (FLOW/NAME) whose process is gone. It continues from its stored results.

    Call it before the deployments are served, by the only process that serves them from this PREFECT_HOME. Runs of work
    pools are left to the automation for missing heartbeats.
    """
    with get_client(sync_client=True) as client:
        ids = [str(found) for name in deployments if (found := _id_of(client, name))]
        wanted = {"state": {"type": {"any_": _OPEN}}, "deployment_id": {"any_": ids}}
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted)):
            if not run.work_pool_name and _is_dead(client, run):
                _settle(client, run)
    remove_free_run_locks()


def is_heard(client: SyncPrefectClient, run: FlowRun, silence: timedelta) -> bool:
    """Whether its state changed or a heartbeat came within ``silence``. Always true for a paused run."""
    since = clock.utc() - silence
    if run.state is None or run.state.type == StateType.PAUSED or run.state.timestamp > since:
        return True
    heartbeats = EventFilter(
        event=EventNameFilter(name=["prefect.flow-run.heartbeat"]),
        resource=EventResourceFilter(id=[f"prefect.flow-run.{run.id}"]),
        occurred=EventOccurredFilter(since=since, until=clock.utc()),
    )
    return bool(client.read_events(heartbeats, limit=1).events)


def _id_of(client: SyncPrefectClient, deployment: str) -> object:
    try:
        return client.read_deployment_by_name(deployment).id
    except ObjectNotFound:
        return None


def _is_dead(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether the run's process is gone. One that ran here has left its lock file, and freed it when it died.

    Another may run elsewhere, as by a ``serve`` of a user's own: then its heartbeats say whether it lives. Whoever
    served a run that is still pending has not started its process yet.
    """
    lock = run_lock(run.id)
    if lock.exists():
        return not is_locked(lock)
    return run.state_type == StateType.PENDING or not is_heard(client, run, SILENCE)


def _settle(client: SyncPrefectClient, run: FlowRun) -> None:
    why = "its process ended with the one that served it"
    if run.state_type == StateType.CANCELLING:
        client.set_flow_run_state(run.id, Cancelled(message=why), force=True)
    else:
        client.set_flow_run_state(run.id, Scheduled(message=f"starting again: {why}"), force=True)
