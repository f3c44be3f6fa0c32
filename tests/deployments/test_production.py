"""docs/deploying.md carried out: Postgres (where installed), server, set-up, deploy, worker, a scheduled run."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from deployments.declaration import declared
from deployments.doctor import Finding, server
from lmcore.registry.versions import history, model_folder
from lmcore.store.locks import locked
from tests.conftest import REPOSITORY, tiny_config, tiny_retraining, write_corpus
from tests.deployments.conftest import PASSWORD, Api
from tests.serving import clean_environment, free_port, settings_form

pytestmark = [pytest.mark.flows, pytest.mark.e2e]

WORKER = ("-m", "prefect", "worker", "start", "--pool", "lm", "--name", "worker")
CHECKPOINTS = "store/runs/*/checkpoints/step-*"
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))


def python(environment: dict[str, str], *arguments: str) -> str:
    """``python ARGUMENTS`` in the repository; what it prints."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextmanager
def postgres() -> Iterator[str]:
    """A Postgres of its own, as any user but root, which it refuses; the URL Prefect wants."""
    folder, port = Path(tempfile.mkdtemp(prefix="lm-postgres-")), free_port()
    user: dict[str, Any] = {"user": "nobody", "cwd": "/"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "nobody")
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"

    def run(*command: str) -> None:
        subprocess.run(command, **user, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    control, data = str(POSTGRES[-1] / "pg_ctl"), str(folder / "data")
    try:
        run(str(POSTGRES[-1] / "initdb"), "-D", data, "-U", "prefect", "--auth", "trust")
        run(control, "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        run(control, "-D", data, "-m", "immediate", "stop")
        shutil.rmtree(folder)


@contextmanager
def process(environment: dict[str, str], log: Path, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """``python ARGUMENTS`` while the body runs, and the end of its whole group."""
    with open(log, "wb") as file:
        started = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            env=environment,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        with suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGTERM)
        started.wait(60)
        print(log.read_text())


@dataclass
class Production:
    """The server, and what the doctor said before each step, by the name of the check."""

    api: Api
    environment: dict[str, str]
    worker: "subprocess.Popen[bytes]"
    before_setup: dict[str, Finding]
    before_worker: dict[str, Finding]


def examine(api: Api) -> dict[str, Finding]:
    settings = {PREFECT_API_URL: api.url, PREFECT_API_AUTH_STRING: PASSWORD}
    with temporary_settings(settings), get_client(sync_client=True) as client:
        return {finding.name: finding for finding in (check() for check in server.checks(client))}


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Production]:
    """Server, set-up and deployments, on Postgres where it is installed, else on SQLite; and a worker."""
    home, port = tmp_path_factory.mktemp("production"), free_port()
    api = Api(port, PASSWORD, home)
    environment = clean_environment(
        PREFECT_HOME=str(home),
        PREFECT_API_URL=api.url,
        PREFECT_API_AUTH_STRING=PASSWORD,
        PREFECT_SERVER_API_AUTH_STRING=PASSWORD,
        PREFECT_SERVER_API_PORT=str(port),
        PREFECT_SERVER_ANALYTICS_ENABLED="false",
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2",
        PREFECT_WORKER_QUERY_SECONDS="1",
        PYTHONPATH=str(REPOSITORY),
        LM_STORE=str(home / "store"),
    )
    with ExitStack() as stack:
        if POSTGRES:
            environment["PREFECT_API_DATABASE_CONNECTION_URL"] = stack.enter_context(postgres())
        stack.enter_context(process(environment, home / "server.log", "-m", "prefect", "server", "start"))
        api.wait(lambda: api.call("/health"))
        before_setup = examine(api)
        for _ in range(2):  # each step may be repeated
            python(environment, "-m", "deployments", "setup")
            said = python(environment, "-m", "deployments", "deploy")
            assert said.splitlines()[-1] == f"20 deployments are on {api.url} for the workers of the pool lm"
            assert "kept as set" not in said
        before_worker = examine(api)
        worker = stack.enter_context(process(environment, home / "worker.log", *WORKER))
        yield Production(api, environment, worker, before_setup, before_worker)


def deployed(api: Api) -> dict[str, Any]:
    """What is on the server, by flow and name."""
    flows = {flow["id"]: flow["name"] for flow in api.call("/flows/filter", {})}
    rows = {}
    for deployment in api.call("/deployments/filter", {}):
        schedules = [(s["slug"], s["schedule"], s["active"], s["parameters"]) for s in deployment["schedules"]]
        rows[f"{flows[deployment['flow_id']]}/{deployment['name']}"] = {
            "entrypoint": deployment["entrypoint"],
            "work_pool": deployment["work_pool_name"],
            "job": deployment["job_variables"],
            "pull": deployment["pull_steps"],
            "limit": deployment["global_concurrency_limit"]["limit"],
            "collision": deployment["concurrency_options"]["collision_strategy"],
            "tags": deployment["tags"],
            "description": deployment["description"],
            "parameters": deployment["parameters"],
            "schema": deployment["parameter_openapi_schema"],
            "enforced": deployment["enforce_parameter_schema"],
            "paused": deployment["paused"],
            "schedules": schedules,
        }
    return rows


def test_what_is_deployed(production: Production, check_golden: Callable[[str, str], None]) -> None:
    rows = deployed(production.api)
    assert {name: row["parameters"] for name, row in rows.items()} == {
        deployment.full_name: deployment.parameters for deployment in declared()
    }
    told = ("parameters", "schema", "description", "pull", "enforced", "paused")
    short = {name: {key: row[key] for key in row.keys() - set(told)} for name, row in rows.items()}
    check_golden("deployments.json", json.dumps(short, indent=1, sort_keys=True) + "\n")


def test_prefect_s_own_command_deploys_the_same_and_forgets_what_was_set(production: Production) -> None:
    api, before = production.api, deployed(production.api)
    mine = api.call("/deployments/name/pretrain/base")["id"]
    api.call(f"/deployments/{mine}", {"tags": ["mine"], "paused": True}, method="PATCH")
    said = python(production.environment, "-m", "deployments", "deploy")
    assert 'pretrain/base: tags: kept as set on the server, ["mine"]; this version has ["lm", "base"]' in said
    after = api.call("/deployments/name/pretrain/base")
    assert (after["tags"], after["paused"]) == (["mine"], True)

    deploy = ["deploy", "--all", "--prefect-file", "deployments/prefect.yaml"]
    python(production.environment, "-m", "prefect", "--no-prompt", *deploy)
    for row in (after := deployed(api)).values():  # it leaves descriptions of inherited settings out of the form
        row["schema"] = None
    assert after == {name: row | {"schema": None} for name, row in before.items()}
    assert "kept as set" not in python(production.environment, "-m", "deployments", "deploy")
    assert deployed(api) == before


def test_what_the_doctor_says_on_the_way(production: Production) -> None:
    bare, idle = production.before_setup, production.before_worker
    assert {name for name, finding in bare.items() if finding.remedy} == {"deployments", "limits", "automations"}
    assert "lm deploy" in bare["deployments"].remedy
    assert idle["work pools"].fact == "lm has no living worker"
    assert not idle["limits"].remedy
    assert not idle["automations"].remedy
    assert not idle["deployments"].remedy
    production.api.wait(lambda: not examine(production.api)["work pools"].remedy)


def test_a_scheduled_run_appears_by_itself_and_finishes(production: Production, corpus: Path) -> None:
    deployment = production.api.call("/deployments/name/prepare_data/small")
    # Often, since the first time may be over before the server has looked at its schedules.
    often = {"interval": 20, "anchor_date": datetime.now(UTC).isoformat()}
    config = tiny_config(corpus, Path()).model_dump(mode="json", exclude={"store"})
    schedule = {"schedule": often, "active": True, "parameters": settings_form(config)}
    path = f"/deployments/{deployment['id']}/schedules"
    [created] = production.api.call(path, [schedule])
    filters = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}

    run = production.api.wait(lambda: production.api.call("/flow_runs/filter", filters))[0]
    production.api.wait(lambda: production.api.run(run["id"])["state"]["type"] != "SCHEDULED")
    production.api.call(f"{path}/{created['id']}", method="DELETE")
    assert production.api.final_state(run)["type"] == "COMPLETED"
    run = production.api.call(f"/flow_runs/{run['id']}")
    assert run["auto_scheduled"]
    assert run["work_pool_name"] == "lm"
    print("late by", datetime.fromisoformat(run["start_time"]) - datetime.fromisoformat(run["expected_start_time"]))
    assert list((production.api.home / "store" / "datasets").glob("*/manifest.json"))


def test_a_start_amid_a_run_that_outlasts_its_interval_is_left_out_and_the_next_does_its_work(
    production: Production, tmp_path: Path
) -> None:
    api, store = production.api, production.api.home / "store"
    config = tiny_retraining(write_corpus(tmp_path / "corpus"), Path(), "long")
    parameters = settings_form(config.model_dump(mode="json", exclude={"store"}))
    deployment = api.call("/deployments/name/retrain/small")
    path = f"/deployments/{deployment['id']}/schedules"
    filters = {"flow_runs": {"deployment_id": {"any_": [deployment["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}

    def scheduled(state: str) -> Any:
        runs = api.call("/flow_runs/filter", filters)
        return next((run for run in runs if run["auto_scheduled"] and run["state"]["type"] == state), None)

    with locked(model_folder(store, "long") / "retraining.lock", "refuse"):
        long = api.start_named("retrain/small", parameters)
        api.ended(long["id"], "RUNNING")  # and waits for us
        often = {"interval": 15, "anchor_date": datetime.now(UTC).isoformat()}
        [schedule] = api.call(path, [{"schedule": often, "active": True, "parameters": parameters}])
        left_out = api.wait(lambda: scheduled("CANCELLED"))
        assert left_out["state"]["message"] == "Deployment concurrency limit reached."
        assert api.run(long["id"])["state"]["type"] == "RUNNING"
    assert api.final_state(long)["type"] == "COMPLETED"
    assert [event["event"] for event in history(store, "long")] == ["added", "promoted"]
    write_corpus(tmp_path / "corpus" / "more", seed=1)
    api.wait(lambda: history(store, "long")[2:])
    api.call(f"{path}/{schedule['id']}", method="DELETE")
    assert api.wait(lambda: scheduled("COMPLETED"))
    assert [event["version"] for event in history(store, "long") if event["event"] == "added"] == ["v0001", "v0002"]


def test_a_run_whose_worker_was_killed_goes_on_at_the_next_one(production: Production, corpus: Path) -> None:
    api, home = production.api, production.api.home
    train = {"device": "cpu", "max_steps": 10**6, "checkpoint_every": 100}
    config = tiny_config(corpus, Path(), **train).model_dump(mode="json", exclude={"store"})
    earlier = set(home.glob(CHECKPOINTS))
    run = api.start_named("pretrain/small", settings_form(config))["id"]
    api.wait(lambda: set(home.glob(CHECKPOINTS)) - earlier)
    production.worker.kill()
    with process(production.environment, home / "next.log", *WORKER):
        api.wait(lambda: len(api.starts(run)) == 2)
        first, second = api.starts(run)
        assert first == 0 < second
        api.cancel(run)
        assert api.ended(run)["type"] == "CANCELLED"


def test_a_worker_that_is_stopped_schedules_its_runs_again_at_once_and_the_next_one_continues_them(
    production: Production, corpus: Path
) -> None:
    api, home = production.api, production.api.home
    production.worker.kill()
    train = {"device": "cpu", "max_steps": 10**6, "checkpoint_every": 100, "seed": 1}
    config = tiny_config(corpus, Path(), **train).model_dump(mode="json", exclude={"store"})
    earlier = set(home.glob(CHECKPOINTS))
    run = api.start_named("pretrain/small", settings_form(config))["id"]
    with process(production.environment, home / "ours.log", "-m", "deployments", "worker") as ours:
        api.wait(lambda: set(home.glob(CHECKPOINTS)) - earlier)
        ours.send_signal(signal.SIGTERM)
        ours.wait(60)
        assert api.run(run)["state"]["type"] == "SCHEDULED"
    before = len(api.starts(run))  # the last lines of a process that was stopped may not have reached the server
    with process(production.environment, home / "again.log", "-m", "deployments", "worker") as ours:
        api.wait(lambda: len(api.starts(run)) > before)
        ours.kill()
        ours.wait()
    before = len(api.starts(run))
    with process(production.environment, home / "last.log", "-m", "deployments", "worker"):
        api.wait(lambda: len(api.starts(run)) > before)
        api.cancel(run)
        assert api.ended(run)["type"] == "CANCELLED"
    assert api.starts(run) == sorted(api.starts(run))
    assert api.starts(run)[-1] > 0
