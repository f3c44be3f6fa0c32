"""Projects: deployments of a user's own, a TOML file each in the folder that LM_PROJECTS names.

A file says what a form says, and the name of the file is that of the deployment. The flow is ``retrain`` unless
``flow`` names another. ``[schedule]`` has cron, timezone and active; tables below ``[advanced]`` have all settings that
the form has no field for.
"""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterTags
from prefect.client.schemas.schedules import CronSchedule
from pydantic import BaseModel, ConfigDict, ValidationError

from deployments.declaration import UNATTENDED, Declared, Schedule, declared, misfits
from flows.prepare_data import prepare_data
from flows.pretrain import pretrain
from flows.retrain import retrain
from lmcore.cli.app import PREPARE, PRETRAIN, RETRAIN
from lmcore.errors import ConfigError
from lmcore.settings.read import CUSTOM, merge, settings_of, toml_text
from lmcore.settings.validation import places

TAG = "project"
"""The tag of their deployments."""
_FLOWS: dict[str, tuple[Any, Any]] = {
    PREPARE.flow: (prepare_data, PREPARE.kind),
    PRETRAIN.flow: (pretrain, PRETRAIN.kind),
    RETRAIN.flow: (retrain, RETRAIN.kind),
}


class _When(BaseModel):
    model_config = ConfigDict(extra="forbid")

    cron: str
    timezone: str = Schedule.timezone
    active: bool = True


def projects() -> list[Declared]:
    """The projects in the folder of LM_PROJECTS, sorted by name. Raises ConfigError that names each wrong file."""
    found, wrong = [], []
    for path in _files():
        try:
            found.append(_project(path, path.read_text(encoding="utf-8-sig")))
        except (OSError, ValueError, ConfigError) as error:
            wrong.append(f"{path}: {error}")
    if wrong:
        raise ConfigError("; ".join(wrong))
    return found


def without_file(client: SyncPrefectClient, found: list[Declared]) -> Iterator[str]:
    """A line for each project on the server that is not among those found."""
    names = {project.full_name for project in found}
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[TAG]))
    for deployment in client.read_deployments(deployment_filter=tagged):
        if (name := f"{client.read_flow(deployment.flow_id).name}/{deployment.name}") not in names:
            yield f"{name}: LM_PROJECTS has no file of it: put it back, or delete the deployment in the UI"


def _files() -> Iterator[Path]:
    if named := os.environ.get("LM_PROJECTS"):
        folder = Path(named).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"LM_PROJECTS: {folder} is not a folder: create it, or name the one with the projects")
        yield from sorted(folder.glob("*.toml"))


def _project(path: Path, text: str) -> Declared:
    fields = tomllib.loads(text)
    name, schedule, advanced = (
        fields.pop("flow", RETRAIN.flow),
        fields.pop("schedule", None),
        fields.get("advanced", {}),
    )
    if name not in _FLOWS:
        raise ConfigError(f"flow: {name!r} is not one of {', '.join(_FLOWS)}")
    if not isinstance(advanced, dict):
        raise ConfigError("advanced: write its settings as tables, such as [advanced.train]")
    if not fields.get("text") and "corpus" not in advanced:
        raise ConfigError("text: it is missing: name the files and folders to read")
    flow, kind = _FLOWS[name]
    if flow is retrain:
        fields.setdefault("model_name", path.stem)
        advanced = merge(tomllib.loads(UNATTENDED), advanced)
    fields["advanced"] = toml_text(advanced)
    project = Declared(flow, path.stem, fields, ["lm", TAG], _schedule(schedule))
    if wrong := misfits(project.schema, fields):
        raise ConfigError(f"{'; '.join(wrong)}. The fields are those of the form of {name}")
    settings_of(kind, fields.get("size", CUSTOM), {}, fields["advanced"], places("", text, within="advanced."))
    if project.full_name in (each.full_name for each in declared()):
        raise ConfigError(f"there is a deployment {project.full_name} already: give the file another name")
    return project


def _schedule(table: Any) -> Schedule | None:
    """The schedule of a project. Raises ConfigError for what the server would refuse."""
    if table is None:
        return None
    try:
        when = _When.model_validate(table)
        CronSchedule(cron=when.cron, timezone=when.timezone)
    except ValidationError as error:
        [problem, *_] = error.errors()
        raise ConfigError(
            f"schedule: {'.'.join(map(str, problem['loc']))}: {problem['msg'].removeprefix('Value error, ')}"
        ) from None
    return Schedule("project", when.cron, when.timezone, when.active, when_served=True)
