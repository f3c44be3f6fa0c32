"""The parameter form of every flow, as the server is told of it: a JSON schema that the UI draws."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any, get_args

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from deployments.declaration import presets, retrain_presets
from flows import actions, form
from flows.prepare_data import prepare_data
from flows.pretrain import pretrain
from flows.retrain import retrain
from lmcore.cli.app import ACTIONS as COMMANDS
from lmcore.settings.read import CUSTOM, preset_names, settings_of
from lmcore.settings.retraining import RetrainConfig
from tests.conftest import REPOSITORY
from tests.serving import clean_environment

FLOWS = [pretrain, prepare_data, retrain]
ACTIONS = [*actions.OF_MODEL, *actions.OF_STORE]
REQUIRED = {"promote": ["version"], "push": ["repository"], "forget": ["document"]}
every_flow = pytest.mark.parametrize("flow", [*FLOWS, *ACTIONS], ids=lambda flow: flow.name)

_UNITS = re.compile("byte|minute|hour|version|run", re.IGNORECASE)
_SURROGATE = "a\ud83d"
"""A cut emoji."""


def schema_of(flow: Flow[..., Any]) -> dict[str, Any]:
    return parameter_schema(flow).model_dump(exclude_none=True)


def fields_of(flow: Flow[..., Any]) -> dict[str, dict[str, Any]]:
    return dict(schema_of(flow)["properties"])


@every_flow
def test_a_form_is_ten_flat_fields_at_most_that_both_uis_save(flow: Flow[..., Any]) -> None:
    """What is nested, optional, a dictionary, a secret or a small fraction is lost or refused by one of the UIs."""
    schema, fields = schema_of(flow), fields_of(flow)
    assert len(fields) <= 10 + (flow in FLOWS)
    assert not schema["definitions"]
    assert schema["required"] == REQUIRED.get(flow.name, [])
    for name, field in fields.items():
        assert field["type"] in ("string", "integer", "boolean", "array"), name
        assert not {"anyOf", "oneOf", "allOf", "format", "writeOnly", "multipleOf"} & field.keys(), name
        assert field.get("items", {"type": "string"})["type"] == "string", name
        assert ("default" in field) is (name not in schema["required"]), name


@every_flow
def test_every_field_explains_itself_and_every_number_has_bounds_and_a_unit(flow: Flow[..., Any]) -> None:
    for name, field in fields_of(flow).items():
        assert len(field["description"]) > 10, name
        if field["type"] == "integer":
            assert {"minimum", "maximum"} <= field.keys(), name
            assert _UNITS.search(field["description"]), f"{name} does not say what it counts"


@every_flow
def test_no_text_of_a_form_takes_half_of_a_character(flow: Flow[..., Any]) -> None:
    """The server checks the pattern; what it stores without one, it could never show again."""
    for name, field in fields_of(flow).items():
        text = field.get("items", field)
        if text["type"] == "string" and "enum" not in text:
            assert not re.search(text["pattern"], _SURROGATE), name


@every_flow
def test_the_page_of_a_deployment_does_not_repeat_the_fields(flow: Flow[..., Any]) -> None:
    assert flow.description
    assert "Args:" not in flow.description


@every_flow
def test_the_form_is_the_one_that_was_looked_at(flow: Flow[..., Any], check_golden: Callable[[str, str], None]) -> None:
    check_golden(f"{flow.name}.json", json.dumps(schema_of(flow), ensure_ascii=False, indent=1) + "\n")


def test_an_action_has_one_name_as_a_form_and_as_a_command() -> None:
    commands = {action.__name__ for group in COMMANDS.values() for action in group}
    assert {flow.name for flow in ACTIONS} - commands == {"versions"}, "its command is models"


def test_every_preset_is_a_size_and_has_its_deployments() -> None:
    assert sorted(get_args(form.Size)) == sorted([*preset_names(), CUSTOM])
    assert presets() == {name: {"size": name} for name in preset_names()}
    assert retrain_presets().keys() == presets().keys()


def test_a_retraining_that_nobody_watches_leaves_what_is_still_being_copied() -> None:
    [advanced] = {parameters["advanced"] for parameters in retrain_presets().values()}
    config = settings_of(RetrainConfig, "tiny", {}, advanced)
    assert (config.corpus.settle_seconds, config.train.schedule) == (60, "wsd")


def test_options_of_a_flow_keep_what_it_takes() -> None:
    assert isinstance(pretrain.with_options(name="mine"), form.FormFlow)


def test_the_defaults_hold_where_prefect_was_imported_first() -> None:
    """Otherwise a temporary server had 20 s to start, and heartbeats came every three minutes."""
    program = (
        "from prefect import flow; from prefect.settings import get_current_settings; import flows.pretrain; "
        "s = get_current_settings(); print(s.server.ephemeral.startup_timeout_seconds, s.flows.heartbeat_frequency)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        env=clean_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["120", "60"]
