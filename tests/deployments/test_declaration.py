"""The one declaration of deployments, and prefect.yaml beside it."""

from typing import Any

import pytest
import yaml
from prefect.utilities.templating import apply_values

from deployments.declaration import JOB_VARIABLES, Declared, declared, misfits, parameters
from deployments.deploy import POOL
from tests.conftest import REPOSITORY


def in_yaml(deployment: Declared) -> dict[str, Any]:
    """As prefect.yaml says it."""
    settings: dict[str, Any] = {
        "name": deployment.name,
        "entrypoint": deployment.entrypoint,
        "tags": deployment.tags,
        "work_pool": {"name": POOL, "job_variables": JOB_VARIABLES},
        "concurrency_limit": {"limit": 1, "collision_strategy": deployment.collision},
    }
    if deployment.parameters:
        settings["parameters"] = deployment.parameters
    if schedule := deployment.schedule:
        when = {"cron": schedule.cron, "timezone": schedule.timezone}
        settings["schedules"] = [when | {"active": schedule.active, "slug": schedule.slug}]
    return settings


def test_prefect_yaml_says_the_same() -> None:
    content = yaml.safe_load((REPOSITORY / "deployments" / "prefect.yaml").read_text(encoding="utf-8"))
    deployments = apply_values(content["deployments"], {"parameters": parameters()})
    assert deployments == [in_yaml(deployment) for deployment in declared()]
    assert content["build"] == [{"deployments.declaration.parameters": {"id": "parameters"}}]


def test_names_differ_also_where_prefect_yaml_writes_them() -> None:
    assert len(parameters()) == len(declared())


@pytest.mark.parametrize("deployment", declared(), ids=lambda deployment: deployment.full_name)
def test_the_parameters_of_each_deployment_fit_its_flow(deployment: Declared) -> None:
    assert not misfits(deployment.schema, deployment.parameters)
    if deployment.parameters:
        deployment.flow.validate_parameters(deployment.parameters)


def test_the_schedule_of_gc_removes_and_the_button_does_not() -> None:
    button, scheduled = (d for d in declared() if d.flow.name == "gc")
    assert (button.name, button.schedule, button.parameters) == ("store", None, {})
    assert scheduled.schedule
    assert "false" in str(scheduled.parameters).lower()
