"""The settings that ship, as parameters of a flow."""

from pathlib import Path
from typing import Any

from lmcore.cli import load_config

CONFIGS = Path(__file__).parent / "configs"


def presets() -> dict[str, dict[str, Any]]:
    """Parameters by the name of their file in configs/. A build step of prefect.yaml, which so holds no copy of them.

    All settings are there, so that the form shows them; the store is not, since it is each machine's own.
    """
    return {
        path.stem: {"config": load_config(path).model_dump(mode="json", exclude={"store"})}
        for path in sorted(CONFIGS.glob("*.toml"))
    }
