"""Pages of a run in the Prefect UI: artifacts of the results of tasks, the run's name, and tags.

An artifact has the same key in each run of a model and a deployment, so that its page shows the history.
"""

import json
import logging
import re
from collections.abc import Callable
from contextvars import ContextVar
from functools import cache
from typing import Any
from urllib.parse import quote

from prefect import Task, get_run_logger
from prefect.artifacts import Artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext
from prefect.runtime import deployment, flow_run
from prefect.settings import PREFECT_API_URL

from lmcore import clock
from lmcore.markdown import escape
from lmcore.settings.config import RunConfig

_log = logging.getLogger(__name__)

_MADE_UP = re.compile("[A-Za-z0-9]+(-[A-Za-z]+)+")
"""A name that Prefect makes up: misty-otter, in the UIs Licensed-Baya and theta5-mordan-nebula."""
_ROWS = 1_000
"""Most rows of a table. The server stores the whole table and a browser draws it."""

_model: ContextVar[str] = ContextVar("model", default="")

Page = Callable[[Any], list[Artifact]]
"""The artifacts that show a task's result."""


def shown(page: Page) -> Callable[[Task[..., Any], TaskRun, State[Any]], None]:
    """A hook on_completion that publishes the page of a task, for new and for cached results.

    An error here loses the page, never the run.
    """

    def show(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> None:
        for artifact in page(state.result()):
            named: dict[str, Any] = {"task_run_id": task_run.id, "flow_run_id": task_run.flow_run_id}
            named["key"] = page_key(str(artifact.key))
            artifact.model_copy(update=named).create()

    return show


def page_key(page: str) -> str:
    """The key of a page: its name, the model of the run and the name of its deployment, as far as there are any."""
    return _plain("-".join(dict.fromkeys(filter(None, (page, _model.get(), _deployment(deployment.id))))))


@cache
def _deployment(id: str | None) -> str:
    return str(deployment.name or "") if id else ""


def _plain(key: str) -> str:
    """Prefect allows a-z, 0-9 and dashes in a key."""
    return re.sub("[^a-z0-9]+", "-", key.lower()).strip("-")


def show_table(key: str, rows: list[dict[str, str]], description: str) -> None:
    """Publish a table artifact.

    The description is also logged, because the page of a run shows its log first.
    """
    get_run_logger().info(description)
    description = escape(description)
    if len(rows) > _ROWS:
        description = f"{description}. The first {_ROWS:,} rows of {len(rows):,}"
    table = [{name: escape(cell) for name, cell in row.items()} for row in rows[:_ROWS]]  # the UI reads Markdown
    create_table_artifact(table, key=_plain(key), description=description)


def name_run(what: str, config: RunConfig, model: str = "") -> None:
    """Name the flow run by its work, its corpus and the time, unless a person has named it.

    ``model`` is the name of the model that it makes, if it has one: then it is in the keys of the run's pages.
    """
    _model.set(model)
    context = FlowRunContext.get()
    if context is None or context.flow_run is None or not _MADE_UP.fullmatch(context.flow_run.name):
        return
    name = f"{what} on {config.corpus.label} {clock.utc():%Y-%m-%d %H:%M} UTC"
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(context.flow_run.id, name=name)
        context.flow_run.name = name  # lines of the log begin with it
    except Exception as error:
        _log.debug("name %s not given: %s", name, error)


def form_link(**changes: Any) -> str:
    """The path of this run's form in the UI, filled in with its parameters and ``changes``; empty by hand."""
    if not deployment.id:
        return ""
    parameters = {name: value for name, value in flow_run.parameters.items() if value not in ("", [], None)} | changes
    return f"/v2/deployments/deployment/{deployment.id}/run?parameters={quote(json.dumps(parameters))}"


def page_of_run() -> str:
    """The address of the flow run in the UI; empty for a temporary server, which ends with the run."""
    return str(flow_run.ui_url) if PREFECT_API_URL.value() else ""


def tag_run(*tags: str) -> None:
    """Add tags to the flow run. If the server fails, the run continues without them."""
    try:
        with get_client(sync_client=True) as client:
            known = client.read_flow_run(flow_run.id).tags
            client.update_flow_run(flow_run.id, tags=[*known, *(tag for tag in tags if tag not in known)])
    except Exception as error:
        _log.debug("tags %s not added: %s", tags, error)
