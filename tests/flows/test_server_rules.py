"""What a server is told at set-up: automations once, and runs that nobody works on any more."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from prefect import flow
from prefect.blocks.notifications import SlackWebhook
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.events.actions import SendNotification
from prefect.states import Cancelling, Completed, Crashed, Pending, Running
from pydantic import SecretStr

from deployments import orphaned_runs
from deployments.automations import create_automations
from deployments.orphaned_runs import start_orphaned_runs
from lmcore.errors import ConfigError
from lmcore.store.locks import locked
from tasks.locks import run_lock
from tasks.policies import STARTS, restart_after_crash
from tasks.retraining import use_hub_token

pytestmark = pytest.mark.flows


@flow(name="nothing")
def nothing() -> None:
    """A flow whose runs are only spoken of."""


def run_in(*states: State) -> FlowRun:
    """A run of a deployment that went through ``states``."""
    deployment = nothing.to_deployment("rules", tags=["lm"]).apply()
    with get_client(sync_client=True) as client:
        run = client.create_flow_run_from_deployment(deployment, tags=["lm"])
        for state in states:
            client.set_flow_run_state(run.id, state, force=True)
        return client.read_flow_run(run.id)


def state_of(run: FlowRun) -> str:
    with get_client(sync_client=True) as client:
        return str(client.read_flow_run(run.id).state_name)


def test_automations_are_created_once_and_those_that_are_there_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    create_automations()
    monkeypatch.setenv("LM_NOTIFY_URL", "http://127.0.0.1:9/")
    create_automations()
    with get_client(sync_client=True) as client:
        before = {automation.name: automation.id for automation in client.read_automations()}
        create_automations()
        assert {automation.name: automation.id for automation in client.read_automations()} == before
    assert len([name for name in before if name.startswith("lm: ")]) == 7


def test_an_address_that_nobody_can_be_told_at_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_NOTIFY_URL", "chat.example/hook")
    with pytest.raises(ConfigError, match=r"LM_NOTIFY_URL is 'chat\.example/hook': give an address"):
        create_automations()


@pytest.mark.parametrize(
    ("states", "after"),
    [
        ([Running()], "Scheduled"),
        ([Running(), Cancelling()], "Cancelled"),
        ([Running(), Completed()], "Completed"),
    ],
)
def test_only_runs_that_have_not_ended_are_settled(states: list[State], after: str) -> None:
    run = run_in(*states)
    run_lock(run.id).parent.mkdir(exist_ok=True)
    run_lock(run.id).touch()  # what a process of this home leaves that was killed
    start_orphaned_runs(["nothing/rules", "nothing/not-there"])
    assert state_of(run) == after
    assert not run_lock(run.id).exists()


def test_a_run_whose_process_lives_is_left_alone() -> None:
    run = run_in(Running())
    with locked(run_lock(run.id), "refuse"):
        start_orphaned_runs(["nothing/rules"])
    assert state_of(run) == "Running"


@pytest.mark.parametrize(
    ("state", "silence", "after"),
    [(Running, 9, "Running"), (Running, 0, "Scheduled"), (Cancelling, 0, "Cancelled"), (Pending, 9, "Scheduled")],
)
def test_of_a_run_that_did_not_begin_here_the_heartbeats_are_asked(
    state: Callable[[], State], silence: int, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orphaned_runs, "SILENCE", timedelta(minutes=silence))
    run = run_in(state())
    start_orphaned_runs(["nothing/rules"])
    assert state_of(run) == after


def test_runs_of_deployments_that_others_serve_are_left_alone() -> None:
    """Such as those of a user's own ``.serve(tags=["lm"])``."""
    run = run_in(Running())
    run_lock(run.id).touch()
    start_orphaned_runs(["pretrain/tiny"])
    assert state_of(run) == "Running"


@pytest.mark.parametrize(
    ("states", "after"),
    [
        ([Running(), Crashed()], "Scheduled"),
        ([Crashed()], "Crashed"),
        ([Running(), Crashed(), Running()], "Running"),
        ([Running(), Crashed()] * STARTS, "Crashed"),
    ],
)
def test_a_crashed_run_starts_again_if_it_had_begun_and_not_too_often(states: list[State], after: str) -> None:
    run = run_in(*states)
    restart_after_crash(nothing, run, Crashed())
    assert state_of(run) == after


@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")  # what Prefect sends with imports it
def test_a_notification_block_of_a_person_is_used_and_one_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LM_NOTIFY_BLOCK", "slack-webhook/team")
    with pytest.raises(ConfigError, match="the server has no block slack-webhook/team: create it in the UI"):
        create_automations()
    made: Any = SlackWebhook(url=SecretStr("https://hooks.slack.com/services/a/b/c"))
    block = made.save("team", overwrite=True)
    create_automations()
    with get_client(sync_client=True) as client:
        found = [each for each in client.read_automations() if each.name.startswith("lm: notify slack-webhook/team")]
        for each in found:
            client.delete_automation(each.id)
    assert len(found) == 5
    for action in (action for each in found for action in each.actions):
        assert isinstance(action, SendNotification)
        assert action.block_document_id == block


def test_the_token_of_the_hub_may_be_a_secret_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    use_hub_token()
    assert os.environ["HF_TOKEN"] == ""
    made: Any = Secret(value="hf_secret")
    made.save("hf-token", overwrite=True)
    try:
        use_hub_token()
        assert os.environ["HF_TOKEN"] == "hf_secret"
    finally:
        Secret.delete("hf-token")
