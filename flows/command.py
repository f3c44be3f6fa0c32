"""What ``python -m flows.NAME`` does: read the settings, run the flow, say what came of it.

Everything for people goes to standard error and standard output; the last line on standard output is one JSON object.
"""

import logging
import sys
from typing import Any

from prefect import Flow
from prefect.exceptions import CancelledRun

from lmcore import cli
from lmcore.config import RunConfig
from lmcore.errors import StoppedError
from lmcore.plain_json import to_json


def run_command(flow: Flow[..., Any], about: str, kind: type[RunConfig] = RunConfig) -> None:
    """Run ``flow`` with settings of a kind; its result has a ``summary()``. A deliberate error is one line."""
    cli.main(lambda: _run(flow, about, kind))


def _run(flow: Flow[..., Any], about: str, kind: type[RunConfig]) -> None:
    config = cli.parse(sys.argv[1:], f"python -m flows.{flow.name}", about, kind)
    try:
        outcome: Any = flow(config)
    except CancelledRun as stop:
        raise StoppedError(str(stop)) from None
    # What Prefect says at exit must not come after the JSON line where both streams go to one place.
    logging.getLogger("prefect").setLevel(logging.WARNING)
    print(f"\n{outcome.summary()}\n")
    print(to_json(outcome.model_dump(mode="json")), flush=True)
