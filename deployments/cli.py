"""The command ``lm``: every action under one name, those that run as Prefect flows among them.

Prefect, torch and transformers are imported by the action that needs them, once its settings are known to be right.
"""

import logging
import os
import sys
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated

from cyclopts import App, Group, Parameter

from lmcore.cli.app import PREPARE, PRETRAIN, RETRAIN, Pipeline, add_pipeline, new_app, run_app
from lmcore.errors import ConfigError
from lmcore.settings.config import RunConfig, default_store

_log = logging.getLogger("lmcore")
_SERVICE = Group("Run as a service", sort_key=4)


def main() -> None:
    """What the console command ``lm`` does."""
    # The processes that we start must find this program's packages, whatever lies in the folder where we are.
    os.environ["PYTHONSAFEPATH"] = "1"
    run_app(_app())


def _app() -> App:
    app = new_app("lm", "Text to a language model of your own: train it, look at it, train it again.")
    for pipeline in (PREPARE, PRETRAIN, RETRAIN):
        add_pipeline(app, pipeline, partial(_run_flow, pipeline))
    for action in (serve, deploy, worker, setup, doctor):
        app.command(action, group=_SERVICE)
    return app


def _run_flow(pipeline: Pipeline, config: RunConfig) -> None:
    """Run the flow of a pipeline. Importing Prefect takes seconds, so a line says first what the command waits for."""
    _log.info("loading Prefect")
    flow = getattr(import_module(f"flows.{pipeline.flow}"), pipeline.flow)

    from flows.command import run_flow

    run_flow(flow, config)


def _refuse_hidden_packages() -> None:
    """Raise ConfigError where Prefect would load other modules: it looks for a flow's imports in the folder first."""
    here, ours = Path.cwd(), Path(__file__).parents[1]
    names = ("lmcore", "tasks", "flows", "deployments")
    found = [path.name for name in names for path in (here / name, here / f"{name}.py") if path.exists()]
    if found and not here.samefile(ours):
        raise ConfigError(
            f"{here} holds {', '.join(found)}, which Prefect would load instead of this program's own: start it in "
            "another folder, with LM_STORE naming the store"
        )


def serve() -> None:
    """Start a Prefect server on this machine, with its UI and a deployment of every flow.

    PREFECT_SERVER_API_PORT is its port (4200 unless set), PREFECT_HOME its folder.
    """
    _refuse_hidden_packages()

    from deployments.serve import main as serve_here

    serve_here()


def deploy() -> None:
    """Put a deployment of every flow on the Prefect server, for workers. It may be repeated.

    The server is the one that PREFECT_API_URL names. What people set there stays, and each difference is a line.
    """
    import flows  # sets the defaults that must stand before Prefect is imported  # noqa: F401
    from deployments.deploy import deploy as deploy_all

    for line in deploy_all():
        print(line, flush=True)


def worker() -> None:
    """Start the runs of the work pool on this machine, until it is stopped. It may be given on several machines.

    The server is the one that PREFECT_API_URL names. When it stops, or starts after a kill, the runs that were its own
    are scheduled again.
    """
    _refuse_hidden_packages()
    import flows  # sets the defaults that must stand before Prefect is imported  # noqa: F401
    from deployments.worker import work

    sys.exit(work())


def setup() -> None:
    """Create on the Prefect server only what deployments rely on: work pool, limits, automations.

    The server is the one that PREFECT_API_URL names.
    """
    import flows  # sets the defaults that must stand before Prefect is imported  # noqa: F401
    from deployments.deploy import set_up

    set_up()
    print("work pool, limits and automations are there")


def doctor(
    *,
    fix: Annotated[
        bool, Parameter(("--fix", "--mend"), help="Fix what can be fixed without touching what is in use.", negative=())
    ] = False,
) -> None:
    """Check everything that a run needs; exit status 1 if anything is wrong.

    The server is the one that PREFECT_API_URL names, the store that of LM_STORE, else ./store.
    """
    import flows  # sets the defaults that must stand before Prefect is imported  # noqa: F401
    from deployments.doctor.examine import findings

    wrong = False
    for finding in findings(default_store().absolute(), fix):
        print(finding.line(), flush=True)
        wrong = wrong or bool(finding.remedy)
    sys.exit(1 if wrong else 0)
