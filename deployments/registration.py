"""Puts deployments on a Prefect server and keeps what people set there.

A missing deployment is created. Of an existing one, the code owns the place of its code (entrypoint, path, pull steps),
the version and the schema of the parameters; these are always written. Everything else belongs to people: it is written
only if the server still has the value that was last written, or none. Each difference gives one line.
"""

import json
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.objects import ConcurrencyOptions
from prefect.client.schemas.responses import DeploymentResponse
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound

from deployments.declaration import JOB_VARIABLES, ROOT, Declared, misfits
from deployments.registration_record import Written
from lmcore.settings.section import differences

Settings = dict[str, Any]
"""Settings of people by name: tags, concurrency_limit, parameters.NAME, schedule.SLUG. None: not set."""

_PARAMETER, _SCHEDULE, _OVERRIDES = "parameters.", "schedule.", "overrides."
_ENFORCED, _MISFITS, _PAUSED = "enforce_parameter_schema", "misfits", "paused"
_SHOWN = 80
"""Most characters of a value in a line."""


def register_all(client: SyncPrefectClient, deployments: Iterable[Declared], pool: str = "") -> Iterator[str]:
    """Register all deployments. Yields their lines; equal lines of several deployments are one."""
    names: dict[str, list[str]] = {}
    for deployment in deployments:
        for line in register(client, deployment, pool):
            names.setdefault(line, []).append(deployment.full_name)
    return (f"{', '.join(having)}: {line}" for line, having in names.items())


def register(client: SyncPrefectClient, deployment: Declared, pool: str = "") -> list[str]:
    """Create or update a deployment for workers of ``pool``, else for this process. One line for each difference."""
    written, wanted = Written(client, deployment.full_name), _wanted(deployment, pool)
    try:
        there = client.read_deployment_by_name(deployment.full_name)
    except ObjectNotFound:
        _create(client, deployment, wanted, pool)
        written.digests, lines = {}, []
        written.note(wanted)
    else:
        lines = list(_update(client, deployment, there, wanted, written, pool))
    written.save()
    return lines


class _Registered(RunnerDeployment):
    """A deployment for Prefect's ``serve``, which would otherwise overwrite what people set."""

    async def aapply(self, *_: Any, **__: Any) -> UUID:
        async with get_client() as client:
            return (await client.read_deployment_by_name(self.full_name)).id


def registered(deployment: Declared) -> RunnerDeployment:
    """The argument of ``prefect.serve`` for a deployment that is on the server."""
    return _Registered(name=deployment.name, flow_name=deployment.flow.name)


def _create(client: SyncPrefectClient, deployment: Declared, wanted: Settings, pool: str) -> None:
    flow = client.create_flow_from_name(deployment.flow.name)
    schedules = [_schedule(name, value) for name, value in wanted.items() if name.startswith(_SCHEDULE)]
    settings = _of_api(wanted) | {"parameters": _parameters(wanted)}
    client.create_deployment(flow, deployment.name, schedules=schedules, **settings, **_owned(deployment, pool))


def _update(
    client: SyncPrefectClient,
    deployment: Declared,
    there: DeploymentResponse,
    wanted: Settings,
    written: Written,
    pool: str,
) -> Iterator[str]:
    """Write the changes. Yields a line for each difference."""
    found = _found(there, wanted.keys() | written.digests.keys())
    change: Settings = {}
    if written.is_new:
        # Before, only deployments of workers had schedules. A missing one was deleted.
        absent = {name for name in wanted.keys() - found.keys() if name.startswith(_SCHEDULE) and pool}
        written.take_over(found, absent)
        if there.paused and not pool:
            change["paused"] = False
            yield "switched on: versions before this one paused it whenever they stopped"
    differing = sorted(name for name in wanted.keys() | found.keys() if found.get(name) != wanted.get(name))
    updates = {name: wanted.get(name) for name in differing if written.is_untouched(name, found.get(name))}
    for name in differing:
        if name not in updates:
            yield from _difference(name, *(_in_effect(deployment, each, name) for each in (found, wanted)))
    wrong = misfits(deployment.schema, _parameters(found | updates))
    if wrong and found.get(_ENFORCED):
        updates[_ENFORCED] = False  # else the server would refuse the new schema
    elif wrong:
        updates.pop(_ENFORCED, None)
    is_paused = change.get("paused", there.paused)
    if (must_be_paused := _must_be_paused(is_paused, wrong, written)) != is_paused:
        change["paused"] = must_be_paused
    if wrong:
        yield _unfit(wrong)
    elif is_paused:
        yield "paused: kept as set on the server" if must_be_paused else "switched on again: its parameters fit now"
    settings = _of_api(updates) | change
    settings |= {name: value for name, value in _owned(deployment, pool).items() if getattr(there, name) != value}
    if any(name.startswith(_PARAMETER) for name in updates):
        settings["parameters"] = _parameters(found | updates)
    if settings:  # an empty update would plan its scheduled runs again
        client.update_deployment(there.id, DeploymentUpdate(**settings))
    _write_schedules(client, there, updates)
    yield from _lost_parameters(there, written)
    same = {name: value for name, value in wanted.items() if name not in differing}
    written.note(same | updates | {_MISFITS: wrong or None})


def _must_be_paused(is_paused: bool, wrong: list[str], written: Written) -> bool:
    """Whether the deployment must be paused: while its parameters do not fit, unless a person decided otherwise."""
    if wrong:
        is_known = written.is_untouched(_MISFITS, wrong)
        written.note({} if is_paused or is_known else {_PAUSED: True})
        return is_paused or not is_known
    is_ours = written.is_ours(_PAUSED)
    written.note({_PAUSED: None})
    return is_paused and not is_ours


def _wanted(deployment: Declared, pool: str) -> Settings:
    settings: Settings = {
        "tags": deployment.tags,
        "description": deployment.flow.description,
        _ENFORCED: True,
        **{_PARAMETER + name: value for name, value in deployment.parameters.items()},
    }
    if pool:
        settings |= {"work_pool_name": pool, "job_variables": JOB_VARIABLES}
        settings |= {"concurrency_limit": 1, "collision_strategy": deployment.collision}
    if schedule := deployment.schedule:
        when = {"cron": schedule.cron, "timezone": schedule.timezone}
        settings[_SCHEDULE + schedule.slug] = when | {
            "active": schedule.active and (schedule.when_served or bool(pool)),
            "parameters": {},
        }
    return settings


def _found(there: DeploymentResponse, names: Collection[str]) -> Settings:
    """The settings on the server; of its schedules only those in ``names``."""
    limit, options = there.global_concurrency_limit, there.concurrency_options
    settings: Settings = {
        "tags": there.tags,
        "description": there.description,
        _ENFORCED: there.enforce_parameter_schema,
        "work_pool_name": there.work_pool_name,
        "job_variables": there.job_variables or None,
        "concurrency_limit": limit.limit if limit else None,
        "collision_strategy": options.collision_strategy.value if limit and options else None,
        **{_PARAMETER + name: value for name, value in there.parameters.items()},
    }
    for schedule in there.schedules:
        when = schedule.schedule.model_dump(mode="json", include={"cron", "rrule", "interval", "timezone"})
        content = {**when, "active": schedule.active, "parameters": schedule.parameters}
        if (name := f"{_SCHEDULE}{schedule.slug}") in names:
            settings[name] = content
    return settings


def _owned(deployment: Declared, pool: str) -> Settings:
    """The settings that only the code decides."""
    settings: Settings = {"version": deployment.flow.version, "parameter_openapi_schema": deployment.schema}
    if pool:
        step = {"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}
        return settings | {"entrypoint": deployment.entrypoint, "path": None, "pull_steps": [step]}
    return settings | {"entrypoint": os.path.relpath(ROOT / deployment.entrypoint), "path": ".", "pull_steps": []}


def _of_api(settings: Settings) -> Settings:
    """The fields of a deployment, without its parameters and schedules."""
    fields = {name: value for name, value in settings.items() if "." not in name}
    if "collision_strategy" in fields:
        strategy = fields.pop("collision_strategy")
        fields["concurrency_options"] = ConcurrencyOptions(collision_strategy=strategy) if strategy else None
    if "job_variables" in fields:
        fields["job_variables"] = fields["job_variables"] or {}
    return fields


def _parameters(settings: Settings) -> dict[str, Any]:
    """The parameters of a deployment."""
    return {
        name.removeprefix(_PARAMETER): value
        for name, value in settings.items()
        if name.startswith(_PARAMETER) and value is not None
    }


def _write_schedules(client: SyncPrefectClient, there: DeploymentResponse, updates: Settings) -> None:
    ids = {f"{_SCHEDULE}{schedule.slug}": schedule.id for schedule in there.schedules}
    for name in filter(lambda name: name.startswith(_SCHEDULE), updates):
        if name in ids:  # an update would lose the parameters of the schedule
            client.delete_deployment_schedule(there.id, ids[name])
        if updates[name]:
            client.create_deployment_schedules(there.id, [_schedule(name, updates[name])])


def _lost_parameters(there: DeploymentResponse, written: Written) -> Iterator[str]:
    """A line for each schedule that had parameters of its own and has none now. Records what they have."""
    for schedule in there.schedules:
        if not schedule.parameters and written.is_ours(f"{_OVERRIDES}{schedule.id}"):
            yield (
                f"schedule {schedule.slug or schedule.id}: it has lost its parameters. The switch of Prefect's second "
                "UI and prefect deployment schedule pause and resume empty them: set the deployment's own instead"
            )
    written.forget(_OVERRIDES)
    written.note({f"{_OVERRIDES}{schedule.id}": schedule.parameters or None for schedule in there.schedules})


def _schedule(name: str, value: Settings) -> DeploymentScheduleCreate:
    when = CronSchedule(cron=value["cron"], timezone=value["timezone"])
    return DeploymentScheduleCreate(schedule=when, active=value["active"], slug=name.removeprefix(_SCHEDULE))


def _difference(name: str, found: Any, wanted: Any) -> Iterator[str]:
    """A line for each value that differs."""
    if name.startswith(_SCHEDULE):
        words = f"schedule {name.removeprefix(_SCHEDULE)}"
        yield f"{words}: kept as set on the server, {_when(found)}; this version has {_when(wanted)}"
        return
    words = name if name.startswith(_PARAMETER) else name.replace("_", " ")
    for part, here, there in differences({words: found}, {words: wanted}):
        yield f"{part}: kept as set on the server, {_shown(here)}; this version has {_shown(there)}"


def _in_effect(deployment: Declared, settings: Settings, name: str) -> Any:
    """The value of a setting. For a parameter that is not set, the default of its flow."""
    if name.startswith(_PARAMETER) and settings.get(name) is None:
        return deployment.schema["properties"].get(name.removeprefix(_PARAMETER), {}).get("default")
    return settings.get(name)


def _when(schedule: Settings | None) -> str:
    if schedule is None:
        return "none"
    when = " ".join(str(schedule[key]) for key in ("cron", "rrule", "interval", "timezone") if schedule.get(key))
    return f"{when}, {'on' if schedule['active'] else 'off'}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _unfit(wrong: list[str]) -> str:
    return (
        f"its parameters no longer fit this version: {'; '.join(wrong)}. They are kept, and the deployment is paused: "
        "Edit > Save it in the UI; the next start switches it on"
    )
