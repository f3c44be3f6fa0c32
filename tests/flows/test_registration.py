"""What people set on a server outlives every registration; what nobody touched follows the code."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest
from prefect import Flow, flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule

from deployments.declaration import Declared, Schedule
from deployments.registration import register, register_all
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.flows

POOL = ""
SUNDAYS = Schedule("weekly", "0 1 * * 0")


@flow(name="registered")
def registered(text: str = "", steps: int = 10, share: float = 0.5) -> None:
    """A flow whose runs are only spoken of."""


@flow(name="registered")
def without_steps(text: str = "", share: float = 0.5) -> None:
    """A later version of it."""


@pytest.fixture
def client() -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(autouse=True)
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flows of tests lie outside the packages."""
    monkeypatch.setattr(Declared, "entrypoint", "tests/flows/test_registration.py:registered")


@pytest.fixture
def declared() -> Declared:
    flow: Flow[..., Any] = registered
    return Declared(flow, uuid4().hex, {"text": "news", "share": 1.0}, ["lm"], SUNDAYS)


def read(client: SyncPrefectClient, declared: Declared) -> DeploymentResponse:
    return client.read_deployment_by_name(declared.full_name)


def schedules(deployment: DeploymentResponse) -> dict[str | None, tuple[str, str | None, bool, dict[str, Any]]]:
    found = {}
    for schedule in deployment.schedules:
        assert isinstance(schedule.schedule, CronSchedule)
        when = schedule.schedule
        found[schedule.slug] = (when.cron, when.timezone, schedule.active, schedule.parameters)
    return found


def test_what_is_absent_is_created_and_said_again_it_changes_nothing(
    client: SyncPrefectClient, declared: Declared
) -> None:
    assert register(client, declared) == []
    first = read(client, declared)
    assert first.parameters == {"text": "news", "share": 1.0}
    assert first.tags == ["lm"]
    assert first.description == "A flow whose runs are only spoken of."
    assert (first.paused, first.enforce_parameter_schema, first.work_pool_name) == (False, True, None)
    assert schedules(first) == {"weekly": ("0 1 * * 0", "Asia/Tokyo", False, {})}
    assert register(client, declared) == []
    assert read(client, declared).model_dump(exclude={"updated"}) == first.model_dump(exclude={"updated"})


def test_what_nobody_touched_gets_the_new_defaults(client: SyncPrefectClient, declared: Declared) -> None:
    register(client, declared)
    mondays = replace(SUNDAYS, cron="0 2 * * 1")
    nightly = Schedule("nightly", "0 3 * * *")
    for schedule in (mondays, nightly):
        later = replace(declared, parameters={"steps": 20, "share": 1.0}, tags=["lm", "new"], schedule=schedule)
        assert register(client, later) == []
        found = read(client, later)
        assert found.parameters == {"steps": 20, "share": 1.0}
        assert found.tags == ["lm", "new"]
        assert schedules(found) == {schedule.slug: (schedule.cron, "Asia/Tokyo", False, {})}


def test_what_a_person_set_stays_and_is_said_in_a_line_each(client: SyncPrefectClient, declared: Declared) -> None:
    register(client, declared)
    there = read(client, declared)
    change = DeploymentUpdate(
        parameters={"text": "mine", "steps": 7, "share": 1},
        tags=["lm", "mine"],
        description="Mine",
        concurrency_limit=3,
        paused=True,
        enforce_parameter_schema=False,
    )
    client.update_deployment(there.id, change)
    [weekly] = there.schedules
    client.update_deployment_schedule(there.id, weekly.id, active=True, schedule=CronSchedule(cron="1 1 * * 1"))
    for slug in ("own", None):
        often = CronSchedule(cron="7 7 * * *", timezone="UTC")
        own = DeploymentScheduleCreate(schedule=often, slug=slug, parameters={"steps": 1}, active=True)
        client.create_deployment_schedules(there.id, [own])
    before = read(client, declared).model_dump(exclude={"updated", "version", "version_id", "version_info"})

    later = replace(declared, parameters={"text": "other", "share": 1.0}, tags=["lm", "other"])
    for _ in range(2):
        lines = register(client, later)
        after = read(client, declared).model_dump(exclude={"updated", "version", "version_id", "version_info"})
        assert after == before
        assert lines == [
            "concurrency limit: kept as set on the server, 3; this version has nothing",
            'description: kept as set on the server, "Mine"; this version has "A flow whose runs are only spoken of."',
            "enforce parameter schema: kept as set on the server, false; this version has true",
            "parameters.steps: kept as set on the server, 7; this version has 10",
            'parameters.text: kept as set on the server, "mine"; this version has "other"',
            "schedule weekly: kept as set on the server, 1 1 * * 1, on; this version has 0 1 * * 0 Asia/Tokyo, off",
            'tags: kept as set on the server, ["lm", "mine"]; this version has ["lm", "other"]',
            "paused: kept as set on the server",
        ]


def test_a_schedule_that_lost_its_parameters_is_reported_once(client: SyncPrefectClient, declared: Declared) -> None:
    """The switch of Prefect's second UI sends only whether it is on, and the server empties the rest."""
    register(client, declared)
    there = read(client, declared).id
    own = DeploymentScheduleCreate(schedule=CronSchedule(cron="7 7 * * *"), parameters={"steps": 1}, active=True)
    [created] = client.create_deployment_schedules(there, [own])
    assert register(client, declared) == []
    client.update_deployment_schedule(there, created.id, active=False)
    assert next(s for s in read(client, declared).schedules if s.id == created.id).parameters == {}
    [line] = register(client, declared)
    assert line.startswith(f"schedule {created.id}: it has lost its parameters")
    assert register(client, declared) == []


def test_a_schedule_may_begin_switched_on_where_it_is_served(client: SyncPrefectClient, declared: Declared) -> None:
    declared = replace(declared, schedule=replace(SUNDAYS, active=True, when_served=True))
    register(client, declared)
    assert schedules(read(client, declared))["weekly"][2] is True


def test_what_a_person_removed_stays_removed(client: SyncPrefectClient, declared: Declared) -> None:
    register(client, declared)
    there = read(client, declared)
    client.delete_deployment_schedule(there.id, there.schedules[0].id)
    client.update_deployment(there.id, DeploymentUpdate(parameters={"share": 1.0}))
    lines = register(client, replace(declared, schedule=replace(SUNDAYS, cron="0 2 * * 1")))
    assert len(lines) == 2
    found = read(client, declared)
    assert found.parameters == {"share": 1.0}
    assert found.schedules == []


def test_a_deployment_that_a_person_deleted_is_made_anew(client: SyncPrefectClient, declared: Declared) -> None:
    register(client, declared)
    client.update_deployment(read(client, declared).id, DeploymentUpdate(parameters={"text": "mine"}))
    client.delete_deployment(read(client, declared).id)
    assert register(client, declared) == []
    assert read(client, declared).parameters == declared.parameters


def test_parameters_that_no_longer_fit_are_kept_and_named_and_the_deployment_paused_once(
    client: SyncPrefectClient, declared: Declared
) -> None:
    register(client, declared)
    mine = {"text": 5, "steps": 7, "share": 1.0}
    change = DeploymentUpdate(parameters=mine, enforce_parameter_schema=False)
    client.update_deployment(read(client, declared).id, change)
    later = replace(declared, flow=without_steps)
    lines = register(client, later)
    assert "steps (there is no such parameter); text (5 is not of type 'string')" in lines[-1]
    found = read(client, declared)
    assert (found.parameters, found.paused) == (mine, True)
    client.update_deployment(found.id, DeploymentUpdate(paused=False))
    register(client, later)
    assert read(client, declared).paused is False

    client.update_deployment(found.id, DeploymentUpdate(parameters={"text": "mine", "share": 1.0}))
    register(client, later)
    assert read(client, declared).parameters == {"text": "mine", "share": 1.0}


def test_a_deployment_that_was_paused_for_its_parameters_is_switched_on_when_they_fit(
    client: SyncPrefectClient, declared: Declared
) -> None:
    """Prefect's UIs have no switch for it."""
    register(client, declared)
    there = read(client, declared).id
    client.update_deployment(there, DeploymentUpdate(parameters={"text": "news", "steps": 7, "share": 1.0}))
    later = replace(declared, flow=without_steps)
    register(client, later)
    register(client, later)
    assert read(client, declared).paused is True
    client.update_deployment(there, DeploymentUpdate(parameters={"text": "news", "share": 1.0}))
    assert register(client, later) == ["switched on again: its parameters fit now"]
    assert read(client, declared).paused is False
    client.update_deployment(there, DeploymentUpdate(paused=True))
    assert register(client, later) == ["paused: kept as set on the server"]
    assert read(client, declared).paused is True


def test_defaults_that_the_form_has_saved_are_no_difference(client: SyncPrefectClient, declared: Declared) -> None:
    register(client, declared)
    mine = {"text": "news", "steps": 10, "share": 1.0}
    client.update_deployment(read(client, declared).id, DeploymentUpdate(parameters=mine))
    assert register(client, declared) == []
    assert read(client, declared).parameters == mine


def test_the_schema_is_enforced_again_as_soon_as_the_parameters_fit(
    client: SyncPrefectClient, declared: Declared
) -> None:
    register(client, declared)
    client.update_deployment(read(client, declared).id, DeploymentUpdate(parameters={"text": "news", "steps": 7}))
    later = replace(declared, flow=without_steps, parameters={"text": "news"})
    register(client, later)
    assert read(client, declared).enforce_parameter_schema is False
    client.update_deployment(read(client, declared).id, DeploymentUpdate(parameters={"text": "mine"}))
    register(client, later)
    assert read(client, declared).enforce_parameter_schema is True


def test_for_workers_and_then_for_this_process(client: SyncPrefectClient, declared: Declared) -> None:
    from deployments.deploy import POOL, create_work_pool

    create_work_pool()
    declared = replace(declared, schedule=replace(SUNDAYS, active=True))
    assert register(client, declared, POOL) == []
    found = read(client, declared)
    assert found.work_pool_name == "lm"
    assert found.job_variables == {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60"}}
    assert found.global_concurrency_limit
    assert found.global_concurrency_limit.limit == 1
    assert found.concurrency_options
    assert found.concurrency_options.collision_strategy == "CANCEL_NEW"
    assert found.pull_steps == [{"prefect.deployments.steps.set_working_directory": {"directory": str(REPOSITORY)}}]
    assert schedules(found)["weekly"][2] is True

    assert register(client, declared) == []
    served = read(client, declared)
    assert (served.work_pool_name, served.global_concurrency_limit, served.job_variables) == (None, None, {})
    assert (served.pull_steps, served.path) == ([], ".")
    assert schedules(served)["weekly"][2] is False


def test_a_deployment_of_the_version_before_is_taken_over(
    client: SyncPrefectClient, declared: Declared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It paused them at every stop, had no schedules where they were served, and kept no digests."""
    presets = {"text": "preset of the version before"}
    there = client.create_deployment(
        client.create_flow_from_name("registered"),
        declared.name,
        parameters=presets,
        tags=["lm"],
        description="A flow whose runs are only spoken of.",
        parameter_openapi_schema=declared.schema,
        enforce_parameter_schema=True,
        paused=True,
    )
    from deployments import registration_record

    monkeypatch.setattr(registration_record, "_BEFORE", {registration_record._digest(presets["text"])})
    lines = register(client, declared)
    assert lines == ["switched on: versions before this one paused it whenever they stopped"]
    found = client.read_deployment(there)
    assert (found.parameters, found.paused) == (declared.parameters, False)
    assert schedules(found) == {"weekly": ("0 1 * * 0", "Asia/Tokyo", False, {})}


def test_every_deployment_has_digests_of_its_own(client: SyncPrefectClient) -> None:
    from deployments.declaration import declared as all_of_them
    from deployments.registration_record import Written

    names = [deployment.full_name for deployment in all_of_them()]
    names += [
        "retrain/ニュース",
        "retrain/スポーツ",
        "retrain/a-b",
        "retrain/a_b",
        "retrain/A_b",
        "retrain/" + "長" * 200,
    ]
    assert len({Written(client, name)._variable for name in names}) == len(names)


def test_a_line_that_several_have_in_common_is_said_once(client: SyncPrefectClient, declared: Declared) -> None:
    both = [declared, replace(declared, name=uuid4().hex)]
    assert list(register_all(client, both)) == []
    for deployment in both:
        client.update_deployment(read(client, deployment).id, DeploymentUpdate(tags=["mine"]))
    [line] = register_all(client, both)
    assert line.startswith(f"{both[0].full_name}, {both[1].full_name}: tags: kept as set on the server")


def test_a_form_that_is_saved_as_it_is_differs_in_nothing(client: SyncPrefectClient) -> None:
    """A browser sends every field of the form, those that hold their defaults too."""
    from deployments.declaration import declared

    [retrain] = [each for each in declared() if each.full_name == "retrain/tiny"]
    register(client, retrain)
    defaults = {name: field["default"] for name, field in retrain.schema["properties"].items() if "default" in field}
    assert defaults["start"] == "export"
    there = read(client, retrain)
    client.update_deployment(there.id, DeploymentUpdate(parameters=defaults | there.parameters))
    assert register(client, retrain) == []
    client.update_deployment(there.id, DeploymentUpdate(parameters=defaults | there.parameters | {"start": "trunk"}))
    said = 'parameters.start: kept as set on the server, "trunk"; this version has "export"'
    assert register(client, retrain) == [said]
