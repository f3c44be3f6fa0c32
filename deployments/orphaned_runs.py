"""Runs whose process ended together with the process that started them, as after a reboot."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.events.filters import EventFilter, EventNameFilter, EventOccurredFilter, EventResourceFilter
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Scheduled

from deployments.automations import SILENCE
from lmcore import clock
from tasks.locks import run_lock, runs_here

_OPEN = [StateType.PENDING.value, StateType.RUNNING.value, StateType.CANCELLING.value]


def start_orphaned_runs(deployments: Iterable[str]) -> None:
    """Schedule every run of ``deployments`` (FLOW/NAME) whose process is gone. It continues from its stored results.

    Call it before the deployments are served, by the only process that serves them from this PREFECT_HOME. Runs of work
    pools are left to their worker, and to the automation for missing heartbeats.
    """
    with get_client(sync_client=True) as client:
        ids = [str(found) for name in deployments if (found := _id_of(client, name))]
        restart_dead_runs(client, lambda run: str(run.deployment_id) in ids and not run.work_pool_name)
        wanted = {"state": {"type": {"any_": _OPEN}}, "deployment_id": {"any_": ids}}
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted)):
            if not run.work_pool_name and not run_lock(run.id).exists() and _is_silent(client, run):
                _settle(client, run)


def restart_dead_runs(client: SyncPrefectClient, is_ours: Callable[[FlowRun], bool]) -> None:
    """Schedule each run of ours that began in this PREFECT_HOME and was killed. It continues from stored results."""
    for identifier in [run for run, is_alive in runs_here().items() if not is_alive]:
        with suppress(ObjectNotFound):  # it is of another server
            if is_ours(run := client.read_flow_run(identifier)):
                if run.state_type in _OPEN:
                    _settle(client, run)
                run_lock(run.id).unlink(missing_ok=True)


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


def _is_silent(client: SyncPrefectClient, run: FlowRun) -> bool:
    """Whether a run that did not begin here is dead. It may live elsewhere, as by a ``serve`` of a user's own.

    Whoever served a run that is still pending has not started its process yet.
    """
    return run.state_type == StateType.PENDING or not is_heard(client, run, SILENCE)


def _settle(client: SyncPrefectClient, run: FlowRun) -> None:
    why = "its process ended with the one that served it"
    if run.state_type == StateType.CANCELLING:
        client.set_flow_run_state(run.id, Cancelled(message=why), force=True)
    else:
        client.set_flow_run_state(run.id, Scheduled(message=f"starting again: {why}"), force=True)
