"""``make serve``: what it says, whom it lets in, and runs that somebody else asked for."""

import asyncio
import json
import logging
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from deployments import serve
from deployments.declaration import presets
from lmcore.errors import ConfigError
from lmcore.registry.versions import model_folder, versions
from lmcore.store.locks import locked
from tests.conftest import REPOSITORY, tiny_config, tiny_retraining
from tests.deployments.conftest import PASSWORD, Api, Completed
from tests.serving import clean_environment, free_port, settings_form

pytestmark = pytest.mark.flows

SET_BY_SERVE = [
    "PREFECT_SERVER_API_PORT",
    "PREFECT_API_URL",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_SERVER_API_AUTH_STRING",
    "PREFECT_SERVER_CORS_ALLOWED_ORIGINS",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE",
]


def test_a_connection_that_is_open_at_the_end_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("asyncio")
    log.addFilter(serve._is_told)
    try:
        log.error("Exception in callback", exc_info=asyncio.CancelledError())
        log.error("Exception in callback", exc_info=OSError("disk"))
    finally:
        log.removeFilter(serve._is_told)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [OSError]


def test_only_its_owner_reads_the_database(served: Api) -> None:
    files = [*served.home.glob("prefect.db*")]
    assert files
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_run_asked_for_through_the_api_completes(served: Api, completed: Completed) -> None:
    assert completed.state["type"] == "COMPLETED", completed.state
    artifacts = served.call("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [completed.run["id"]]}}})
    keys = {f"{page}-tiny" for page in ("report", "losses", "data", "tokenizer", "evaluation", "training")}
    assert keys <= {a["key"] for a in artifacts}
    assert list((completed.store / "runs").glob("*/model/model.safetensors"))


def test_the_log_of_a_run_says_how_its_corpus_was_read(served: Api, completed: Completed) -> None:
    assert served.logs(completed.run["id"]).count("documents of plain text (corpus.document = auto)") == 1


@pytest.mark.parametrize("name", ["pretrain/tiny", "prepare_data/tiny"])
def test_a_form_never_chooses_code(served: Api, corpus: Path, tmp_path: Path, name: str) -> None:
    config = tiny_config(corpus, tmp_path / "store").model_dump(mode="json")
    config["corpus"]["filter"] = "json.loads"  # a setting of earlier versions
    state = served.final_state(served.start_named(name, settings_form(config)))
    assert state["type"] == "FAILED"
    assert "filter was removed" in state["message"]
    assert not (tmp_path / "store").exists()


def test_a_schedule_makes_runs_appear(served: Api) -> None:
    deployment = served.call("/deployments/name/prepare_data/tiny")
    schedule = {"active": True, "schedule": {"interval": 86400, "anchor_date": "2030-01-01T00:00:00Z"}}
    served.call(f"/deployments/{deployment['id']}/schedules", [schedule])
    filters = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}, "state": {"type": {"any_": ["SCHEDULED"]}}}}
    assert served.wait(lambda: served.call("/flow_runs/filter", filters))


@pytest.mark.parametrize("parameters", [{"size": "huge"}, {"sizes": "tiny"}, {"config": {"train": {"lr": 1}}}])
def test_unknown_settings_are_refused_at_creation(served: Api, parameters: dict[str, object]) -> None:
    deployment = served.call("/deployments/name/pretrain/tiny")
    body = {"parameters": parameters}
    assert served.refused(f"/deployments/{deployment['id']}/create_flow_run", body) == 409


def test_half_of_a_character_is_refused_at_creation_and_nothing_is_stored(served: Api) -> None:
    """A cut emoji: the server on SQLite would keep it and answer 500 for it ever after."""
    deployment = served.call("/deployments/name/pretrain/tiny")["id"]
    for parameters in ({"prompts": ["a\ud83d"]}, {"text": ["\ud83d"]}, {"advanced": "# \ud83d"}):
        body = {"parameters": parameters}
        assert served.refused(f"/deployments/{deployment}/create_flow_run", body) == 409
        assert served.refused(f"/deployments/{deployment}", body, method="PATCH") == 409
    served.call("/flow_runs/filter", {"flow_runs": {"deployment_id": {"any_": [deployment]}}})
    whole = {"parameters": {"prompts": ["😀"], "advanced": "# 😀\n"}, "state": {"type": "CANCELLED"}}
    assert served.call(f"/deployments/{deployment}/create_flow_run", whole)["parameters"]["prompts"] == ["😀"]


@pytest.mark.parametrize("flow", ["pretrain", "prepare_data"])
def test_each_preset_is_a_deployment_with_its_size_in_the_form(served: Api, flow: str) -> None:
    found = {d["name"]: d for d in served.call("/deployments/filter", {"flows": {"name": {"any_": [flow]}}})}
    assert {name: deployment["parameters"] for name, deployment in found.items()} == presets()
    assert all(deployment["description"] and "lm" in deployment["tags"] for deployment in found.values())


@pytest.mark.parametrize("password", ["", "somebody:else"])
def test_without_the_password_nothing_is_told(served: Api, password: str) -> None:
    stranger = Api(served.port, password)
    assert stranger.refused("/deployments/filter", {}) == 401
    assert stranger.refused("/flow_runs/filter", {}) == 401
    assert stranger.refused("/admin/settings") == 401


def test_the_password_is_said_nowhere(served: Api) -> None:
    log = (served.home / "log").read_text()
    assert f"http://127.0.0.1:{served.port} (asks for user:password)" in log
    assert PASSWORD not in log


def test_the_browser_asks_this_server_and_telemetry_is_off(served: Api) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{served.port}/ui-settings", timeout=60) as answer:
        page: dict[str, Any] = json.load(answer)
    assert page["api_url"] == served.url
    assert page["auth"] == "BASIC"
    assert page["default_ui"] == "v2"
    assert served.call("/admin/settings")["server"]["analytics_enabled"] is False


@pytest.mark.parametrize(("host", "allowed"), [("127.0.0.1", True), ("localhost", True), ("elsewhere.example", False)])
def test_pages_of_other_sites_may_not_read_the_api(served: Api, host: str, allowed: bool) -> None:
    request = served.request("/health")
    request.add_header("Origin", f"http://{host}:{served.port}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert ("Access-Control-Allow-Origin" in answer.headers) is allowed


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "４２"])
def test_a_port_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("PREFECT_SERVER_API_PORT", port)
    with pytest.raises(ConfigError, match="give a number from 1 to 65535"):
        serve.main()


def test_a_password_that_the_server_cannot_compare_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SET_BY_SERVE:
        monkeypatch.setenv(name, "")  # and taken back afterwards
    monkeypatch.setenv("PREFECT_SERVER_API_AUTH_STRING", "誰か:秘密")
    with pytest.raises(ConfigError, match="takes ASCII only") as refused:
        serve.main()
    assert "秘密" not in str(refused.value)


def test_a_port_that_somebody_else_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        for name in SET_BY_SERVE:
            monkeypatch.setenv(name, "")
        monkeypatch.setenv("PREFECT_SERVER_API_PORT", str(other.getsockname()[1]))
        with pytest.raises(ConfigError, match=r"cannot be had \(Address already in use\)"):
            serve.main()


def test_a_second_serve_in_the_same_home_is_refused_in_one_line(served: Api) -> None:
    environment = clean_environment(PREFECT_HOME=str(served.home), PREFECT_SERVER_API_PORT=str(free_port()))
    command = [sys.executable, "-m", "deployments", "serve"]
    second = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=100)
    assert second.returncode == 1
    assert second.stdout == ""
    [line] = second.stderr.splitlines()
    assert line.startswith(f"error: the Prefect home {served.home} is in use by process ")
    assert "stop that one, or name another PREFECT_HOME and port" in line


def test_a_cancel_that_nobody_answers_ends_after_a_minute(served: Api) -> None:
    cleanup = served.call("/admin/settings")["server"]["services"]["cancellation_cleanup"]
    assert cleanup["cancelling_timeout_seconds"] == 60


def test_the_gpu_limit_is_there(served: Api) -> None:
    limit = served.call("/v2/concurrency_limits/gpu")
    assert limit["active"]
    assert limit["limit"] >= 1
    assert limit["active_slots"] == 0


def test_of_two_retrainings_at_once_one_waits_or_is_refused(served: Api, corpus: Path, tmp_path: Path) -> None:
    """Served flows have no limit of their own: a start amid a run that outlasts its interval meets the model's lock."""
    config = tiny_retraining(corpus, tmp_path / "store", "served").model_dump(mode="json")
    with locked(model_folder(tmp_path / "store", "served") / "retraining.lock", "refuse"):
        waits = served.start_named("retrain/tiny", settings_form(config))
        refused = served.start_named("retrain/tiny", settings_form(config | {"when_locked": "refuse"}))
        state = served.final_state(refused)
        assert state["type"] == "FAILED"
        assert "the retraining of served is in use by" in state["message"]
        served.ended(waits["id"], "RUNNING")
    assert served.final_state(waits)["type"] == "COMPLETED"
    assert [version.id for version in versions(tmp_path / "store", "served")] == ["v0001"]
