"""What can be checked of Dockerfile and compose file where no container runs."""

import re
from typing import Any

import pytest
import yaml

from tests.conftest import REPOSITORY

DEPLOYMENTS = REPOSITORY / "deployments"


@pytest.fixture(scope="module")
def compose() -> Any:
    return yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())


def test_the_image_holds_every_package_and_what_it_is_installed_from() -> None:
    lines = re.findall(r"^COPY (.+) \S+$", (DEPLOYMENTS / "Dockerfile").read_text(), re.MULTILINE)
    copied = {name for line in lines for name in line.split()}
    assert all((REPOSITORY / name).exists() for name in copied)
    packages = {path.parent.name for path in REPOSITORY.glob("*/__init__.py")} - {"tests"}
    assert copied == packages | {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "NOTICE"}


def test_every_pin_is_one_that_an_index_without_builds_for_the_cpu_has() -> None:
    pins = (REPOSITORY / "constraints.txt").read_text()
    assert "torch==" in pins
    assert not re.findall(r"^[^#].*\+", pins, re.MULTILINE)


def test_services_wait_for_what_they_need(compose: Any) -> None:
    services = compose["services"]
    waits = {
        (name, other): condition["condition"]
        for name, service in services.items()
        for other, condition in service.get("depends_on", {}).items()
    }
    assert waits == {
        ("server", "postgres"): "service_healthy",
        ("setup", "server"): "service_healthy",
        ("worker", "setup"): "service_completed_successfully",
    }
    assert all("healthcheck" in services[name] for name in ("postgres", "server"))


def test_volumes_are_declared_and_passwords_are_asked_for(compose: Any) -> None:
    mounted = [volume for service in compose["services"].values() for volume in service.get("volumes", [])]
    named = {volume.split(":")[0] for volume in mounted if not volume.startswith("${")}
    named |= {default for volume in mounted for default in re.findall(r"^\$\{\w+:-(\w+)\}", volume)}
    assert named == set(compose["volumes"])
    text = (DEPLOYMENTS / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+):\?", text)) == {"LM_PASSWORD", "POSTGRES_PASSWORD", "LM_TEXT"}


def test_the_server_is_reached_from_this_machine_only_and_the_worker_is_ours(compose: Any) -> None:
    services = compose["services"]
    assert [port for service in services.values() for port in service.get("ports", [])] == ["127.0.0.1:4200:4200"]
    assert services["worker"]["command"] == ["python", "-m", "deployments", "worker"]
