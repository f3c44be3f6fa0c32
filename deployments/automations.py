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

from lmcore.errors import ConfigError
from tasks.policies import STARTS

SILENCE = timedelta(minutes=9)
"""A run without a heartbeat for so long is dead. They come every 60 s (as flows sets it; by default 180 s)."""

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


def create_automations(silence: timedelta = SILENCE) -> None:
    """Create what is missing on the server. Raises ConfigError where LM_NOTIFY_URL is no address of the web."""
    for rescuer in rescuers(silence):
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


def rescuers(silence: timedelta = SILENCE) -> list[Automation]:
    """What looks after runs that died."""
    return [zombies_crash(silence), zombies_go_on()]


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
                state=StateType.CRASHED, message=f"{_SILENT} {silence}: its process or its machine is gone"
            )
        ],
    )


def zombies_go_on() -> Automation:
    """A run that was marked so is started again, as the process that started it would do if it lived (policies.py).

    Not every Crashed run: events may be heard twice, and a run that was started again must be left alone.
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
    """Runs by the count of their starts and the message of their state."""
    counts = [str(count) for count in times]
    labels = {"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": counts, "prefect.state-message": said}
    return ResourceSpecification.model_validate(labels)


def _create(automation: Automation) -> None:
    """Create it where there is none of its name: writing one anew would forget which runs it was watching."""
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(automation.name):
            client.create_automation(AutomationCore(**automation.model_dump(exclude={"id"})))
