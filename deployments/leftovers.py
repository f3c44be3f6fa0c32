"""Runs whose processes ended together with those who served them: after a reboot, or a kill of everything."""

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import Cancelled, Scheduled

_OPEN = [StateType.PENDING.value, StateType.RUNNING.value, StateType.CANCELLING.value]


def start_leftovers_again() -> None:
    """Schedule every run that was served from here and has not ended; it continues from what it had made.

    To be called where nothing is served yet. Runs of work pools are left to the automation that looks for heartbeats.
    """
    with get_client(sync_client=True) as client:
        wanted = {"state": {"type": {"any_": _OPEN}}, "tags": {"all_": ["lm"]}}
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(wanted)):
            if run.deployment_id and not run.work_pool_name:
                _settle(client, run)


def _settle(client: SyncPrefectClient, run: FlowRun) -> None:
    why = "its process ended with the one that served it"
    if run.state_type == StateType.CANCELLING:
        client.set_flow_run_state(run.id, Cancelled(message=why), force=True)
    else:
        client.set_flow_run_state(run.id, Scheduled(message=f"starting again: {why}"), force=True)
