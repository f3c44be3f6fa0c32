"""The parameters of the deployments: a size each, and what else the form is to begin with."""

from typing import Any

from lmcore.settings.presets import preset_names

_NOBODY_WATCHES = """\
[corpus]
settle_seconds = 60.0  # files that are still being copied are left for next time

[train]
schedule = "wsd"  # keeps a checkpoint that start = trunk goes on from
"""


def presets() -> dict[str, dict[str, Any]]:
    """Parameters by the name of the deployment."""
    return {name: {"size": name} for name in preset_names()}


def retrain_presets() -> dict[str, dict[str, Any]]:
    """The same for the flow retrain, which runs by itself."""
    return {name: {"size": name, "advanced": _NOBODY_WATCHES} for name in preset_names()}
