"""The job templates of work pools for containers. Where a worker's package is installed, it reads them too."""

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from jsonschema import Draft202012Validator
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.templating import find_placeholders

from deployments.declaration import JOB_VARIABLES
from tests.conftest import REPOSITORY

POOLS = REPOSITORY / "deployments" / "pools"


def template(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((POOLS / f"{name}.json").read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize("name", ["docker", "kubernetes"])
def test_every_variable_is_used_and_its_default_fits(name: str) -> None:
    content = template(name)
    assert content.keys() == {"variables", "job_configuration"}  # what the server accepts
    Draft202012Validator.check_schema(content["variables"])
    properties = content["variables"]["properties"]
    assert {placeholder.name for placeholder in find_placeholders(content["job_configuration"])} == properties.keys()
    defaults = {key: field["default"] for key, field in properties.items() if "default" in field}
    for values in (defaults, JOB_VARIABLES):
        Draft202012Validator(content["variables"]).validate(values)
    assert {"image", "env", "command", "name", "labels"} <= properties.keys()


@pytest.mark.parametrize(
    ("module", "kind"),
    [("prefect_docker", "Docker"), ("prefect_kubernetes", "Kubernetes")],
    ids=["docker", "kubernetes"],
)
@pytest.mark.flows
def test_the_worker_makes_a_job_of_it(module: str, kind: str) -> None:
    worker = pytest.importorskip(f"{module}.worker", reason=f"{module} is missing")
    job_class = getattr(worker, f"{kind}WorkerJobConfiguration")
    job = asyncio.run(job_class.from_template_and_values(template(kind.lower()), JOB_VARIABLES))
    job.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="a run"))
    assert job.env["LM_STORE"] == "/store"
    assert job.env["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"] == "60"
