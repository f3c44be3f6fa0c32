"""The settings that ship, for the parameter ``config`` of every flow."""

from pathlib import Path
from typing import Any

from lmcore.cli import load_config

CONFIGS = Path(__file__).parent / "configs"


def presets() -> dict[str, dict[str, Any]]:
    """Settings by the name of their file in configs/. A build step of prefect.yaml, which so holds no copy of them.

    All are there, so that the form shows them; but for the store, which is each machine's own.
    """
    return {
        path.stem: load_config(path).model_dump(mode="json", exclude={"store"})
        for path in sorted(CONFIGS.glob("*.toml"))
    }
