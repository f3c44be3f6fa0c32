"""The doctor's checks of the Prefect server: deployments, workers, limits, automations, and dead runs."""

from collections.abc import Iterator
from functools import partial
from http import HTTPStatus

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import DeploymentStatus, FlowRun, StateType, WorkerStatus
from prefect.client.schemas.responses import DeploymentResponse
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed

from deployments.automations import SILENCE, create_automations, rescuers
from deployments.declaration import misfits
from deployments.deploy import POOL, create_limits
from deployments.doctor import Check, Finding
from deployments.orphaned_runs import is_heard
from tasks.locks import GPU_LIMIT as GPU

_WITH_PROCESS = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_PAGE = 200


def reachable() -> Finding:
    """Whether the server answers, accepts the password, and has the version of this client."""
    url = PREFECT_API_URL.value()
    if not url:
        return Finding("server", "none is configured", "lm serve, or set PREFECT_API_URL")
    try:
        with get_client(sync_client=True) as client:
            server, here = client.api_version(), client.client_version()
    except httpx.HTTPStatusError as error:
        if error.response.status_code == HTTPStatus.UNAUTHORIZED:
            return Finding("server", f"{url} asks for a password", "set PREFECT_API_AUTH_STRING to user:password")
        return Finding("server", f"{url}: {error}", "see the server's output; PREFECT_API_URL must end with /api")
    except httpx.HTTPError as error:
        return Finding("server", f"{url} does not answer: {error}", "start it, or correct PREFECT_API_URL")
    if server != here:
        return Finding("server", f"it is Prefect {server}, this is {here}", "install the same version on both sides")
    return Finding("server", f"{url} answers, Prefect {server}")


def checks(client: SyncPrefectClient) -> Iterator[Check]:
    """All checks of a server that answers."""
    for check in (deployments, parameters, work_pools, limits, automations, zombies, slots):
        yield partial(check, client)


def deployments(client: SyncPrefectClient) -> Finding:
    """Whether deployments exist and a process serves them."""
    found = client.read_deployments(limit=_PAGE)
    idle = [d.name for d in found if d.status == DeploymentStatus.NOT_READY and not d.work_pool_name]
    if not found:
        return Finding("deployments", "there are none", "lm serve, or lm deploy for workers")
    if idle:
        return Finding("deployments", f"nobody serves {', '.join(sorted(set(idle)))}", "start lm serve again")
    return Finding("deployments", f"{len(found)} are there")


def parameters(client: SyncPrefectClient) -> Finding:
    """Whether flows accept the parameters that are stored for our deployments and their schedules."""
    wrong = []
    for deployment in client.read_deployments(limit=_PAGE):
        if "lm" in deployment.tags:
            name = f"{client.read_flow(deployment.flow_id).name}/{deployment.name}"
            wrong += [f"{where}: {what}" for where, what in _unfit(deployment, name)]
    if wrong:
        remedy = "edit and save them in the UI, or delete the schedule; the next start switches the deployment on"
        return Finding("parameters", f"no longer those of this version: {'; '.join(wrong)}", remedy)
    return Finding("parameters", "all are those of this version")


def _unfit(deployment: DeploymentResponse, name: str) -> Iterator[tuple[str, str]]:
    schema = deployment.parameter_openapi_schema or {}
    for what in misfits(schema, deployment.parameters):
        yield name, what
    for schedule in deployment.schedules:
        for what in misfits(schema, schedule.parameters):
            yield f"schedule {schedule.slug or schedule.id} of {name}", what


def work_pools(client: SyncPrefectClient) -> Finding:
    """Whether each pool of the deployments has a living worker."""
    wrong, remedies, fine = [], [], []
    for name in sorted({d.work_pool_name for d in client.read_deployments(limit=_PAGE) if d.work_pool_name}):
        workers = client.read_workers_for_work_pool(name)
        online = [worker.name for worker in workers if worker.status == WorkerStatus.ONLINE]
        if client.read_work_pool(name).is_paused:
            wrong.append(f"{name} is paused")
            remedies.append(f"prefect work-pool resume {name}")
        elif not online:
            wrong.append(f"{name} has no living worker")
            remedies.append("lm worker" if name == POOL else f"prefect worker start --pool {name}")
        else:
            fine.append(f"{name} has {', '.join(online)}")
    if wrong:
        return Finding("work pools", "; ".join(wrong), "; ".join(remedies))
    return Finding("work pools", "; ".join(fine) or "no deployment needs one")


def limits(client: SyncPrefectClient) -> Finding:
    """Whether the concurrency limit of trainings exists and is on."""
    found = {limit.name: limit for limit in client.read_global_concurrency_limits(limit=_PAGE)}
    if GPU not in found:
        return Finding("limits", f"{GPU} is missing, so no training starts", "--fix creates it", create_limits)
    if not found[GPU].active or not found[GPU].limit:
        return Finding("limits", f"{GPU} is switched off or 0", f"prefect gcl update {GPU} --limit 1 --enable")
    return Finding("limits", f"{GPU}: {found[GPU].active_slots} of {found[GPU].limit} slots are taken")


def automations(client: SyncPrefectClient) -> Finding:
    """Whether our automations for dead runs exist and are on. Other automations are not checked."""
    found = {automation.name: automation for automation in client.read_automations()}
    ours = [rescuer.name for rescuer in rescuers()]
    if missing := [name for name in ours if name not in found]:
        fact = f"missing, so a run that died shows as running: {'; '.join(missing)}"
        return Finding("automations", fact, "--fix creates them", create_automations)
    if off := [name for name in ours if not found[name].enabled]:
        return Finding("automations", f"switched off: {'; '.join(off)}", "switch it on in the UI, under Automations")
    return Finding("automations", f"{len(ours)} are on")


def zombies(client: SyncPrefectClient) -> Finding:
    """Whether flow runs are shown as running without a heartbeat for SILENCE."""
    dead = [run for run in _runs(client, _WITH_PROCESS) if not is_heard(client, run, SILENCE)]
    if not dead:
        return Finding("zombie runs", "none")

    def fix() -> None:
        for run in dead:
            client.set_flow_run_state(run.id, Crashed(message=f"no heartbeat for {SILENCE}"), force=True)

    names = ", ".join(f"{run.name} ({run.id}) as {run.state_name}" for run in dead)
    return Finding("zombie runs", f"dead, but shown: {names}", "--fix marks them as crashed", fix)


def slots(client: SyncPrefectClient) -> Finding:
    """Whether slots of a limit are taken and no run is alive. A living run may have several."""
    limits = client.read_global_concurrency_limits(limit=_PAGE)
    surplus = {limit.name: limit.active_slots for limit in limits if limit.active_slots}
    if not surplus or any(is_heard(client, run, SILENCE) for run in _runs(client, [*_WITH_PROCESS, StateType.PAUSED])):
        return Finding("slots", "none is held by a dead run")

    def fix() -> None:
        for name, count in surplus.items():
            client.release_concurrency_slots([name], count, occupancy_seconds=1)

    taken = ", ".join(f"{count} of {name}" for name, count in surplus.items())
    return Finding("slots", f"held by dead runs: {taken}", "they come free with their lease, or with --fix", fix)


def _runs(client: SyncPrefectClient, states: list[StateType]) -> list[FlowRun]:
    of_state = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
    return client.read_flow_runs(flow_run_filter=of_state, limit=_PAGE)
