"""What the doctor says of a server, each thing broken for real on the one that ``make serve`` started."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from prefect.automations import Automation
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.events.actions import DoNothing
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.automations import rescuers, zombies_crash
from deployments.deploy import create_limits, create_work_pool
from deployments.doctor import Finding, server
from tasks.locks import GPU_LIMIT as GPU
from tests.deployments.conftest import PASSWORD, Api
from tests.serving import free_port

pytestmark = pytest.mark.flows


@pytest.fixture
def client(served: Api) -> Iterator[SyncPrefectClient]:
    settings = {PREFECT_API_URL: served.url, PREFECT_API_AUTH_STRING: PASSWORD}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        yield client


def test_a_served_machine_is_whole(served: Api, client: SyncPrefectClient) -> None:
    assert not server.reachable().remedy
    served.wait(lambda: not server.deployments(client).remedy)  # after the first look for work
    found = {finding.name: finding for finding in (check() for check in server.checks(client))}
    assert found["deployments"].fact == "20 are there"
    assert found["work pools"].fact == "no deployment needs one"
    assert not found["limits"].remedy
    assert not found["zombie runs"].remedy
    assert not found["slots"].remedy


@pytest.mark.parametrize("password", [None, "somebody:else"])
def test_a_server_that_asks_for_a_password(served: Api, password: str | None) -> None:
    with temporary_settings({PREFECT_API_URL: served.url, PREFECT_API_AUTH_STRING: password}):
        finding = server.reachable()
    assert finding.fact == f"{served.url} asks for a password"
    assert "PREFECT_API_AUTH_STRING" in finding.remedy


def test_no_server_there() -> None:
    url = f"http://127.0.0.1:{free_port()}/api"
    with temporary_settings({PREFECT_API_URL: url}):
        assert "does not answer" in server.reachable().fact


def test_an_address_without_its_end_is_named(served: Api) -> None:
    with temporary_settings({PREFECT_API_URL: served.url.removesuffix("/api")}):
        assert "PREFECT_API_URL must end with /api" in server.reachable().remedy


def test_no_server_named() -> None:
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        assert server.reachable().fact == "none is configured"


def test_a_server_of_another_version(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SyncPrefectClient, "client_version", lambda self: "3.0.0")
    assert "this is 3.0.0" in server.reachable().fact


def test_a_deployment_that_nobody_serves(served: Api, client: SyncPrefectClient) -> None:
    flow = served.call("/flows/", {"name": "forgotten"})
    deployment = served.call("/deployments/", {"name": "forgotten", "flow_id": flow["id"]})
    try:
        assert server.deployments(client).fact == "nobody serves forgotten"
    finally:
        client.delete_deployment(deployment["id"])
    assert not server.deployments(client).remedy


def test_parameters_that_no_flow_takes_any_more_are_named(served: Api, client: SyncPrefectClient) -> None:
    assert not server.parameters(client).remedy
    deployment = served.call("/deployments/name/gc/weekly")["id"]
    when = {"interval": 86400, "anchor_date": "2030-01-01T00:00:00Z"}
    old = {"schedule": when, "active": False, "slug": "old", "parameters": {"choice": {"dry_run": False}}}
    [schedule] = served.call(f"/deployments/{deployment}/schedules", [old])
    try:
        finding = server.parameters(client)
        assert "schedule old of gc/weekly: choice (there is no such parameter)" in finding.fact
    finally:
        client.delete_deployment_schedule(deployment, schedule["id"])


def test_a_pool_that_is_paused(served: Api, client: SyncPrefectClient) -> None:
    for _ in range(2):
        create_work_pool()
    flow = served.call("/flows/", {"name": "pooled"})
    body = {"name": "pooled", "flow_id": flow["id"], "work_pool_name": "lm"}
    deployment = served.call("/deployments/", body)
    try:
        assert server.work_pools(client).fact == "lm has no living worker"
        client.send_worker_heartbeat("lm", "here", heartbeat_interval_seconds=60)
        assert server.work_pools(client).fact == "lm has here"
        client.update_work_pool("lm", WorkPoolUpdate(is_paused=True))
        assert server.work_pools(client).remedy == "prefect work-pool resume lm"
    finally:
        client.delete_deployment(deployment["id"])
        client.delete_work_pool("lm")


def test_a_limit_that_is_missing_or_off(client: SyncPrefectClient) -> None:
    client.delete_global_concurrency_limit_by_name(GPU)
    finding = server.limits(client)
    assert "gpu is missing" in finding.fact
    assert finding.fix
    finding.fix()
    assert not server.limits(client).remedy
    client.upsert_global_concurrency_limit_by_name(GPU, 0)
    create_limits()  # leaves alone what somebody set
    assert "switched off or 0" in server.limits(client).fact
    client.upsert_global_concurrency_limit_by_name(GPU, 1)


def test_an_automation_that_is_switched_off_or_missing(served: Api, client: SyncPrefectClient) -> None:
    trigger = EventTrigger(expect={"never"}, posture=Posture.Reactive, threshold=1)
    others = client.create_automation(
        AutomationCore(name="asleep", enabled=False, trigger=trigger, actions=[DoNothing()])
    )
    try:
        assert server.automations(client).fact == "2 are on"  # and what others switch off is theirs to know
        crashes, goes_on = rescuers()
        [found] = client.read_automations_by_name(crashes.name)
        served.call(f"/automations/{found.id}", {"enabled": False}, method="PATCH")
        assert server.automations(client).fact == f"switched off: {crashes.name}"
        client.delete_automation(found.id)
        finding = server.automations(client)
        assert finding.fact == f"missing, so a run that died shows as running: {crashes.name}"
        assert finding.fix
        finding.fix()
        assert server.automations(client).fact == "2 are on"
        assert len(client.read_automations_by_name(goes_on.name)) == 1
    finally:
        client.delete_automation(others)


def shown(served: Api, state: str = "Running") -> Any:
    """A flow run that no process runs."""
    flow = served.call("/flows/", {"name": "dead"})
    body = {"flow_id": flow["id"], "name": "dead-run", "state": {"type": state.upper(), "name": state}}
    return served.call("/flow_runs/", body)


def test_a_zombie_is_marked_and_a_run_with_a_heartbeat_is_not(
    served: Api, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive, never_began, dead, paused = (shown(served, state) for state in ("Running", "Pending", "Running", "Paused"))
    assert not server.zombies(client).remedy  # all are new
    monkeypatch.setattr(server, "SILENCE", timedelta(seconds=4))

    def found() -> Finding | None:
        beat(served, alive)
        finding = server.zombies(client)
        return finding if dead["id"] in finding.fact and alive["id"] not in finding.fact else None

    finding = served.wait(found)
    assert f"{never_began['id']}) as Pending" in finding.fact
    assert f"{dead['id']}) as Running" in finding.fact
    assert finding.fix
    finding.fix()
    states = [served.run(run["id"])["state"]["type"] for run in (alive, never_began, dead, paused)]
    assert states == ["RUNNING", "CRASHED", "CRASHED", "PAUSED"]
    for run in (alive, paused):
        client.delete_flow_run(run["id"])


def test_silence_is_a_crash(served: Api, client: SyncPrefectClient) -> None:
    silent = shown(served)
    rule = only(zombies_crash(timedelta(seconds=10)), silent)  # Prefect's shortest
    created = client.create_automation(AutomationCore(**rule.model_dump(exclude={"id"})))

    def ended_after_a_beat() -> Any:
        """The server answers before it has loaded a new automation: it may miss the first heartbeat."""
        beat(served, silent)
        with suppress(AssertionError):
            return served.ended(silent["id"], seconds=20)

    try:
        state = served.wait(ended_after_a_beat)
        assert state["type"] == "CRASHED"
        assert state["message"].startswith("no heartbeat for 0:00:10")
    finally:
        client.delete_automation(created)


def only(rule: Automation, run: Any) -> Automation:
    """The rule for this run alone, whatever its tags: others run on this server, and are silent for longer."""
    match = ResourceSpecification.model_validate({"prefect.resource.id": f"prefect.flow-run.{run['id']}"})
    assert isinstance(rule.trigger, EventTrigger)
    trigger = rule.trigger.model_copy(update={"match": match, "match_related": ResourceSpecification({})})
    return rule.model_copy(update={"trigger": trigger})


def beat(served: Api, run: Any) -> None:
    resource = {"prefect.resource.id": f"prefect.flow-run.{run['id']}"}
    event = {"occurred": datetime.now(UTC).isoformat(), "event": "prefect.flow-run.heartbeat", "resource": resource}
    served.call("/events", [{**event, "id": str(uuid4())}])


def test_a_slot_that_nobody_alive_holds_is_freed(client: SyncPrefectClient) -> None:
    client.increment_concurrency_slots([GPU], 1, "concurrency")  # without a lease: as after a restart of the server
    finding = server.slots(client)
    assert finding.fact == "held by dead runs: 1 of gpu"
    assert finding.fix
    finding.fix()
    assert not server.slots(client).remedy
    assert server.limits(client).fact == "gpu: 0 of 1 slots are taken"


def test_a_slot_of_a_living_run_is_left_alone(served: Api, client: SyncPrefectClient) -> None:
    run = shown(served)
    client.increment_concurrency_slots([GPU], 1, "concurrency")
    assert not server.slots(client).remedy
    client.delete_flow_run(run["id"])
    assert server.slots(client).remedy
    client.release_concurrency_slots([GPU], 1, 1)
