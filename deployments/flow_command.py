"""How ``lm`` runs a flow. Prefect takes seconds to import, so a line says first what the command waits for."""

import logging
from importlib import import_module

from lmcore.settings.config import RunConfig

_log = logging.getLogger("lmcore")


def run(name: str, config: RunConfig) -> None:
    """Run the flow of this name, which its module in ``flows`` has too."""
    _log.info("loading Prefect")
    flow = getattr(import_module(f"flows.{name}"), name)

    from flows.command import run_flow

    run_flow(flow, config)
