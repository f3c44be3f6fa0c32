"""How a flow is run from a command line: read the settings, run the flow, say what came of it.

Everything for people goes to standard error and standard output; the last line on standard output is one JSON object.
"""

import logging
from typing import Any

from prefect import Flow
from prefect.exceptions import CancelledRun

from lmcore.cli.app import Pipeline, run_pipeline
from lmcore.cli.outcome import print_json
from lmcore.errors import StoppedError
from lmcore.settings.config import RunConfig
from tasks.logs import leave_failure_to_command


def run_command(flow: Flow[..., Any], pipeline: Pipeline) -> None:
    """What ``python -m flows.NAME`` does: settings from the command line, then the flow."""
    run_pipeline(f"python -m flows.{flow.name}", pipeline, lambda config: run_flow(flow, config))


def run_flow(flow: Flow[..., Any], config: RunConfig) -> None:
    """Run ``flow``, whose result has a ``summary()``, and print both the summary and the result."""
    leave_failure_to_command()
    try:
        outcome: Any = flow(config)
    except CancelledRun as stop:
        raise StoppedError(str(stop)) from None
    # What Prefect says at exit must not come after the JSON line where both streams go to one place.
    logging.getLogger("prefect").setLevel(logging.WARNING)
    print(f"\n{outcome.summary()}\n")
    print_json(outcome.model_dump(mode="json"))
