"""Prefect automations: the server restarts dead runs and sends notifications.

An automation that exists under its name is kept, because a person may have changed it in the UI. Notifications are a
POST of JSON to LM_NOTIFY_URL, or a text through a notification block of Prefect (Slack, Teams, e-mail and others) that
LM_NOTIFY_BLOCK names. Without these variables none are created; another URL replaces the earlier one.
"""

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.automations import Automation, AutomationCore, EventTrigger, Posture
from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.retrain import ENDS
from lmcore.errors import ConfigError
from tasks.policies import STARTS

SILENCE = timedelta(minutes=9)
"""A run without a heartbeat for this time is dead. Heartbeats come every 60 s (Prefect's default is 180 s)."""

_SILENT = "no heartbeat for"
_FORMER = "lm: a run without heartbeat has crashed"
"""An automation of an earlier version. It does not know all names of states that end a run."""
_HEARTBEAT = "prefect.flow-run.heartbeat"
_ENDS = ["Completed", "Failed", "Cancelled", "Crashed", "Stopped", "Paused", "Suspended", *ENDS]
_RUNS = ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"})
_OURS = ResourceSpecification.model_validate({"prefect.resource.role": "tag", "prefect.resource.id": "prefect.tag.lm"})
_RUN_LINE = (
    "{{ (flow_run.name ~ ' (' ~ flow.name ~ '): ' ~ flow_run.state.name ~ ' ' ~ (flow_run.state.message or '')) "
)
_RUN_NOTICE = f'{{"what": "%s", "run": "{{{{ flow_run.id }}}}", "text": {_RUN_LINE}| tojson }}}}}}'
_MODEL_LINE = "{{ event.resource.name }}: {{ event.payload | tojson }}"
_MODEL_NOTICE = '{"what": "%s", "text": {{ event.resource.name | tojson }}, "payload": {{ event.payload | tojson }}}'


def create_automations() -> None:
    """Create missing automations on the server.

    Raises ConfigError when LM_NOTIFY_URL is not an http(s) address, or LM_NOTIFY_BLOCK no block on the server.
    """
    _delete(_FORMER)
    for rescuer in rescuers():
        _create(rescuer)
    if url := os.environ.get("LM_NOTIFY_URL"):
        block = _webhook(url)
        for occasion in _OCCASIONS:
            call = CallWebhook(block_document_id=block, payload=occasion.json)
            _create(Automation(name=f"lm: tell of {occasion}", trigger=occasion.trigger(), actions=[call]))
    if name := os.environ.get("LM_NOTIFY_BLOCK"):
        block = _notification_block(name)
        for occasion in _OCCASIONS:
            send = SendNotification(block_document_id=block, subject=f"lm: {occasion.what}", body=occasion.text)
            _create(Automation(name=f"lm: notify {name} of {occasion}", trigger=occasion.trigger(), actions=[send]))


@dataclass(frozen=True)
class _Occasion:
    """Something that people are notified of."""

    what: str
    events: str
    runs: ResourceSpecification | None = None
    """The runs it happens to. None: it happens to models."""

    def __str__(self) -> str:
        return f"runs that {self.what}" if self.runs else f"models that were {self.what}"

    def trigger(self) -> EventTrigger:
        if not self.runs:
            return EventTrigger(expect={self.events})
        return EventTrigger(expect={self.events}, match=self.runs, match_related=_OURS)

    @property
    def json(self) -> str:
        return (_RUN_NOTICE if self.runs else _MODEL_NOTICE) % self.what

    @property
    def text(self) -> str:
        return f"{_RUN_LINE}}}}}\n{{{{ flow_run|ui_url }}}}" if self.runs else _MODEL_LINE


def _webhook(url: str) -> UUID:
    """The block with the address that gets a POST of JSON."""
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"LM_NOTIFY_URL is {url!r}: give an address that begins with http:// or https://")
    webhook: Any = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    block: UUID = webhook.save("lm-notify", overwrite=True)
    return block


def _notification_block(name: str) -> UUID:
    """The block TYPE/NAME of a person, such as slack-webhook/team."""
    kind, _, document = name.partition("/")
    with get_client(sync_client=True) as client:
        try:
            return client.read_block_document_by_name(document, kind).id
        except ObjectNotFound:
            raise ConfigError(
                f"LM_NOTIFY_BLOCK: the server has no block {name}: create it in the UI under Blocks, and give TYPE/NAME"
            ) from None


def rescuers() -> list[Automation]:
    """The automations for dead runs."""
    return [zombies_crash(SILENCE), zombies_go_on()]


def zombies_crash(silence: timedelta) -> Automation:
    """An automation that marks a run Crashed after ``silence`` without a heartbeat."""
    return Automation(
        name="lm: a silent run has crashed",
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


def _runs_that(state_type: str) -> ResourceSpecification:
    """A filter of runs by the type of their state. Its name says what came of the run."""
    labels = {"prefect.resource.id": "prefect.flow-run.*", "prefect.state-type": state_type}
    return ResourceSpecification.model_validate(labels)


def _runs_started(*times: int, said: str = "*") -> ResourceSpecification:
    """A filter of runs by the number of their starts and the message of their state."""
    counts = [str(count) for count in times]
    labels = {"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": counts, "prefect.state-message": said}
    return ResourceSpecification.model_validate(labels)


_OCCASIONS = (
    _Occasion("finished", "prefect.flow-run.*", _runs_that("COMPLETED")),
    _Occasion("failed", "prefect.flow-run.*", _runs_that("FAILED")),
    _Occasion("crashed too often", "prefect.flow-run.Crashed", _runs_started(STARTS)),
    _Occasion("promoted", "lm.model.promoted"),
    _Occasion("refused", "lm.model.refused"),
)


def _delete(name: str) -> None:
    with get_client(sync_client=True) as client:
        for found in client.read_automations_by_name(name):
            client.delete_automation(found.id)


def _create(automation: Automation) -> None:
    """Create the automation if none has its name. Replacing one would forget the runs that it watches."""
    with get_client(sync_client=True) as client:
        if not client.read_automations_by_name(automation.name):
            client.create_automation(AutomationCore(**automation.model_dump(exclude={"id"})))
