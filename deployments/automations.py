"""Prefect automations: the server restarts dead runs and sends notifications.

An automation that exists under its name is kept, because a person may have changed it in the UI. Notifications are a
POST of JSON to LM_NOTIFY_URL. Without that variable none are created; another URL replaces the earlier one.
"""

import os
from datetime import timedelta

from prefect.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState
from prefect.events.schemas.events import ResourceSpecification
from prefect.types import SecretDict
from pydantic import SecretStr

from lmcore.errors import ConfigError
from tasks.policies import STARTS

SILENCE = timedelta(minutes=9)
"""A run without a heartbeat for this time is dead. Heartbeats come every 60 s (Prefect's default is 180 s)."""

_SILENT = "no heartbeat for"
_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ["Completed", "Failed", "Cancelled", "Crashed", "Stopped", "Paused", "Suspended"]
_RUNS = ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"})
_OURS = ResourceSpecification.model_validate({"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.lm"})
_RUN_LINE = (
    "{{ (flow_run.name ~ ' (' ~ flow.name ~ '): ' ~ flow_run.state.name ~ ' ' ~ (flow_run.state.message or '')) "
)
_RUN_NOTICE = f'{{"what": "%s", "run": "{{{{ flow_run.id }}}}", "text": {_RUN_LINE}| tojson }}}}}}'
_MODEL_NOTICE = '{"what": "%s", "text": {{ event.resource.name | tojson }}, "payload": {{ event.payload | tojson }}}'


def create_automations() -> None:
    """Create missing automations on the server. Raises ConfigError when LM_NOTIFY_URL is not an http(s) address."""
    for rescuer in rescuers():
        _create(rescuer)
    if url := os.environ.get("LM_NOTIFY_URL"):
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"LM_NOTIFY_URL is {url!r}: give an address that begins with http:// or https://")
        webhook = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
        block = webhook.save("lm-notify", overwrite=True)
        for what, state, runs in (
            ("finished", "Completed", _RUNS),
            ("failed", "Failed", _RUNS),
            ("crashed too often", "Crashed", _runs_started(STARTS)),
        ):
            call = CallWebhook(block_document_id=block, payload=_RUN_NOTICE % what)
            trigger = EventTrigger(expect={f"prefect.flow-run.{state}"}, match=runs, match_related=_OURS)
            _create(Automation(name=f"lm: tell of runs that {what}", trigger=trigger, actions=[call]))
        for what in ("promoted", "refused"):
            call = CallWebhook(block_document_id=block, payload=_MODEL_NOTICE % what)
            trigger = EventTrigger(expect={f"lm.model.{what}"})
            _create(Automation(name=f"lm: tell of models that were {what}", trigger=trigger, actions=[call]))


def rescuers() -> list[Automation]:
    """The automations for dead runs."""
    return [zombies_crash(SILENCE), zombies_go_on()]


def zombies_crash(silence: timedelta) -> Automation:
    """An automation that marks a run Crashed after ``silence`` without a heartbeat."""
    return Automation(
        name="lm: a run without heartbeat has crashed",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            match=_RUNS,
            match_related=_OURS,
            for_each={"prefect.resource.id"},
            after={_HEARTBEAT},
            expect={_HEARTBEAT, *(f"prefect.flow-run.{name}" for name in _ENDS)},
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED, message=f"{_SILENT} {silence}: its process or its machine is gone"
            )
        ],
    )


def zombies_go_on() -> Automation:
    """An automation that starts again the runs that ``zombies_crash`` marked.

    Other Crashed runs are started again by the process that saw the crash (policies.py). The server may handle an event
    twice, and a run that was started again must not be started once more.
    """
    return Automation(
        name="lm: a run whose machine is gone starts again",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=_runs_started(*range(1, STARTS), said=f"{_SILENT}*"),
            match_related=_OURS,
        ),
        actions=[
            ChangeFlowRunState(state=StateType.SCHEDULED, message=f"starting again, {STARTS} starts at most"),
        ],
    )


def _runs_started(*times: int, said: str = "*") -> ResourceSpecification:
    """A filter of runs by the number of their starts and the message of their state."""
    counts = [str(count) for count in times]
    labels = {"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": counts, "prefect.state-message": said}
    return ResourceSpecification.model_validate(labels)


def _create(automation: Automation) -> None:
    """Create the automation if none has its name. Replacing one would forget the runs that it watches."""
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(automation.name):
            client.create_automation(AutomationCore(**automation.model_dump(exclude={"id"})))
