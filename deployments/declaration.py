"""All deployments, declared once: for ``lm serve``, for workers, and for prefect.yaml (a test compares that file)."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import validate

from flows import actions
from flows.prepare_data import prepare_data
from flows.pretrain import pretrain
from flows.retrain import retrain
from lmcore.settings.read import preset_names

ROOT = Path(__file__).parents[1]
"""The folder that holds the packages: entrypoints are relative to it."""

# Set for each job, as Prefect reads it in a worker's runs before it loads the flow.
JOB_VARIABLES = {"env": {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "60"}}

UNATTENDED = """\
[corpus]
settle_seconds = 60.0  # files that are still being copied are left for next time

[train]
schedule = "wsd"  # keeps a checkpoint that start = trunk goes on from
"""
"""The field ``advanced`` of a retraining that runs by itself."""


@dataclass(frozen=True)
class Schedule:
    """When runs start by themselves.

    What they do stands in the deployment's parameters, never here: the switch of the second UI and
    ``prefect deployment schedule resume`` empty the parameters of a schedule.
    """

    slug: str
    """Its name. Prefect replaces all schedules of a deployment where one has none."""
    cron: str
    timezone: str = "Asia/Tokyo"
    active: bool = False
    """Whether a deployment begins with it on."""
    when_served: bool = False
    """Whether that holds for ``lm serve`` too. Otherwise a deployment that is served on this machine begins with it
    off."""


@dataclass(frozen=True)
class Declared:
    """One deployment."""

    flow: Flow[..., Any]
    name: str
    parameters: dict[str, Any]
    tags: list[str]
    schedule: Schedule | None = None

    @property
    def full_name(self) -> str:
        return f"{self.flow.name}/{self.name}"

    @property
    def entrypoint(self) -> str:
        """Relative to ROOT."""
        return f"{self.flow.fn.__module__.replace('.', '/')}.py:{self.flow.fn.__name__}"

    @property
    def schema(self) -> dict[str, Any]:
        """Schema of its parameters, for the server's check and the UI's form. Unknown names are refused."""
        return parameter_schema(self.flow).model_dump(exclude_unset=True) | {"additionalProperties": False}

    @property
    def collision(self) -> str:
        """What happens to a start while another run is active. With a schedule, the next start does its work."""
        return "CANCEL_NEW" if self.schedule else "ENQUEUE"


NIGHTLY = Schedule("nightly", "0 2 * * *")
"""New text of the day is in shards by morning. A person switches it on when the corpus is set."""
WEEKLY = Schedule("weekly", "0 1 * * 0")
"""Each Sunday night it looks for new text. A person switches it on, likewise."""
REHEARSAL = Schedule("weekly", "0 3 * * 1", active=True)
"""A few minutes of training each Monday test the machine, the store and the worker."""
CLEANING = Schedule("weekly", "0 5 * * 0")
"""Removes what no version and no newer run needs."""


def declared() -> list[Declared]:
    """Every deployment there is."""
    settings = list(_of_settings())
    of_actions: dict[str, list[Any]] = {"model": actions.OF_MODEL, "store": actions.OF_STORE}
    by_hand = [Declared(flow, name, {}, ["lm"]) for name, found in of_actions.items() for flow in found]
    # By hand gc only says what would go. The schedule has a deployment of its own, which removes it.
    gc: Any = actions.gc
    removing = Declared(gc, "weekly", {"dry_run": False}, ["lm"], CLEANING)
    return [*settings, *by_hand, removing]


def _of_settings() -> Iterator[Declared]:
    """One for each flow and preset."""
    for name, settings in presets().items():
        schedule = REHEARSAL if name == "tiny" else None
        yield Declared(pretrain, name, settings, ["lm", name], schedule)
    for name, settings in presets().items():
        schedule = None if name == "tiny" else NIGHTLY
        yield Declared(prepare_data, name, settings, ["lm", name], schedule)
    for name, settings in retrain_presets().items():
        yield Declared(retrain, name, settings, ["lm", name], WEEKLY)


def presets() -> dict[str, dict[str, Any]]:
    """The parameters of pretrain and prepare_data, by the name of the deployment: a size each."""
    return {name: {"size": name} for name in preset_names()}


def retrain_presets() -> dict[str, dict[str, Any]]:
    """The same for the flow retrain, which runs by itself."""
    return {name: {"size": name, "advanced": UNATTENDED} for name in preset_names()}


def parameters() -> dict[str, dict[str, Any]]:
    """The parameters of each deployment. A build step of prefect.yaml, which needs no copy of them."""
    return {deployment.full_name.replace("/", "_"): deployment.parameters for deployment in declared()}


def misfits(schema: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """The stored parameters that a flow with this schema would refuse, a few words each."""
    known = schema.get("properties", {})
    taken = {name: value for name, value in parameters.items() if name in known}
    return [
        *(f"{name} (there is no such parameter)" for name in parameters.keys() - known.keys()),
        *(
            f"{'.'.join(map(str, error.absolute_path))} ({error.message:.100})"
            for error in validate(taken, schema, ignore_required=True)
        ),
    ]
