"""Prefect automations: what a server does by itself about runs that ended badly, and whom it tells.

What is there already under its name stays, as somebody may have set it in the UI. Notifications go as a POST of JSON to
the URL in LM_NOTIFY_URL: without one none are made, and another one replaces it.
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

STARTS = 4
"""How often a run is started at most: the first time, and after each of three crashes."""

SILENCE = timedelta(minutes=9)
"""A run without a heartbeat for so long is dead. They come every 60 s (as flows sets it; by default 180 s)."""

_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ["Completed", "Failed", "Cancelled", "Crashed", "Stopped", "Paused", "Suspended"]
_RUNS = ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"})
_OURS = ResourceSpecification.model_validate({"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.lm"})
_RUN_EVENTS = {
    "finished": {"prefect.flow-run.Completed"},
    "failed": {"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
}
_RUN_LINE = "{{ (flow.name ~ ' ' ~ flow_run.name ~ ': ' ~ flow_run.state.name ~ ' ' ~ (flow_run.state.message or '')) "
_RUN_NOTICE = f'{{"what": "%s", "run": "{{{{ flow_run.id }}}}", "text": {_RUN_LINE}| tojson }}}}}}'
_MODEL_NOTICE = '{"what": "%s", "text": {{ event.resource.name | tojson }}, "payload": {{ event.payload | tojson }}}'


def create_automations(silence: timedelta = SILENCE) -> None:
    """Create what is missing on the server."""
    _create(zombies_crash(silence))
    _create(crashed_runs_go_on())
    if url := os.environ.get("LM_NOTIFY_URL"):
        webhook = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
        block = webhook.save("lm-notify", overwrite=True)
        for what, events in _RUN_EVENTS.items():
            call = CallWebhook(block_document_id=block, payload=_RUN_NOTICE % what)
            trigger = EventTrigger(expect=events, match=_RUNS, match_related=_OURS)
            _create(Automation(name=f"lm: tell of runs that {what}", trigger=trigger, actions=[call]))
        for what in ("promoted", "refused"):
            call = CallWebhook(block_document_id=block, payload=_MODEL_NOTICE % what)
            trigger = EventTrigger(expect={f"lm.model.{what}"})
            _create(Automation(name=f"lm: tell of models that were {what}", trigger=trigger, actions=[call]))


def zombies_crash(silence: timedelta) -> Automation:
    """A run of any deployment that says nothing for ``silence`` is marked Crashed."""
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
                state=StateType.CRASHED, message=f"no heartbeat for {silence}: its process or its machine is gone"
            )
        ],
    )


def crashed_runs_go_on() -> Automation:
    """A run that crashed is started again with the same parameters, and continues from what it had made.

    One that never began is not: the event counts its starts, and none would be the last.
    """
    starts = [str(count) for count in range(1, STARTS)]
    return Automation(
        name="lm: a crashed run goes on",
        trigger=EventTrigger(
            expect={"prefect.flow-run.Crashed"},
            match=ResourceSpecification.model_validate({**_RUNS.model_dump(), "prefect.run-count": starts}),
            match_related=_OURS,
            for_each={"prefect.resource.id"},
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.SCHEDULED, message=f"starting again after a crash, {STARTS} starts at most"
            )
        ],
    )


def _create(automation: Automation) -> None:
    """Create it where there is none of its name: writing one anew would forget which runs it was watching."""
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(automation.name):
            client.create_automation(AutomationCore(**automation.model_dump(exclude={"id"})))
