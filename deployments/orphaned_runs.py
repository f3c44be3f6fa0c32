"""Runs whose process ended together with the process that served them, as after a reboot."""

from collections.abc import Iterable

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Scheduled

_OPEN = [StateType.PENDING.value, StateType.RUNNING.value, StateType.CANCELLING.value]


def start_orphaned_runs(deployments: Iterable[str]) -> None:
    """Schedule every run of ``deployments`` (FLOW/NAME) that has not ended. It continues from its stored results.

    Call it before the deployments are served. Runs of work pools are left to the automation for missing heartbeats.
    """
    with get_client(sync_client=True) as client:
        ids = [str(found) for name in deployments if (found := _id_of(client, name))]
        wanted = {"state": {"type": {"any_": _OPEN}}, "deployment_id": {"any_": ids}}
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted)):
            if not run.work_pool_name:
                _settle(client, run)


def _id_of(client: SyncPrefectClient, deployment: str) -> object:
    try:
        return client.read_deployment_by_name(deployment).id
    except ObjectNotFound:
        return None


def _settle(client: SyncPrefectClient, run: FlowRun) -> None:
    why = "its process ended with the one that served it"
    if run.state_type == StateType.CANCELLING:
        client.set_flow_run_state(run.id, Cancelled(message=why), force=True)
    else:
        client.set_flow_run_state(run.id, Scheduled(message=f"starting again: {why}"), force=True)
