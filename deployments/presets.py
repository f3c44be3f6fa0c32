"""The settings that ship, for the parameter ``config`` of every flow."""

from pathlib import Path
from typing import Any

from lmcore.cli.settings import load_config
from lmcore.retraining import RetrainConfig

CONFIGS = Path(__file__).parent / "configs"


def presets() -> dict[str, dict[str, Any]]:
    """Settings by the name of their file in configs/. A build step of prefect.yaml, which so holds no copy of them.

    All are there, so that the form shows them; but for the store, which is each machine's own.
    """
    return {
        path.stem: load_config(path).model_dump(mode="json", exclude={"store"})
        for path in sorted(CONFIGS.glob("*.toml"))
    }


def retrain_presets() -> dict[str, dict[str, Any]]:
    """The same for the flow retrain, which nobody watches: files that are still being copied are left for next time.
    The schedule keeps a trunk, so that retraining.start may name it."""
    found = presets()
    for settings in found.values():
        settings["train"]["schedule"] = "wsd"
        settings["corpus"]["settle_seconds"] = 60.0
    return {
        name: RetrainConfig.model_validate(settings).model_dump(mode="json", exclude={"store"})
        for name, settings in found.items()
    }
