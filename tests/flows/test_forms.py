"""The parameter form of every flow, as the server is told of it: a JSON schema that the UI draws."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows import models, store
from flows.prepare_data import prepare_data
from flows.pretrain import pretrain
from flows.retrain import retrain

FLOWS = [pretrain, prepare_data, retrain]
BUTTONS = [*models.BUTTONS, *store.BUTTONS]
REQUIRED = {("promote", "choice.version"), ("push", "choice.repository"), ("forget", "choice.document")}
Schema = dict[str, Any]

_UNITS = re.compile(
    r"byte|token|step|block|head|layer|epoch|process|thread|minute|second|share|probability|nats|norm|rate|piece|pass|"
    r"vector|checkpoint|deviation|validation|decay|TFLOP|number|logits|document|draw|run|version|hour",
    re.IGNORECASE,
)


def schema_of(flow: Flow[..., Any]) -> Schema:
    return parameter_schema(flow).model_dump(exclude_none=True)


def leaves(schema: Schema, node: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every setting that is no group, and every group."""
    if "$ref" in node:
        # The form draws the title beside the reference, or else the name; never the definition's own.
        shown = node.get("title", path.rpartition(".")[2].replace("_", " ").capitalize())
        node = {**schema["definitions"][node["$ref"].rpartition("/")[2]], **node}
        assert "." not in path or node["title"] == shown, f"{path} is titled {shown} in the form"
    yield path, node
    for name, field in node.get("properties", {}).items():
        yield from leaves(schema, field, f"{path}.{name}".lstrip("."))


def settings_of(flow: Flow[..., Any]) -> list[tuple[str, Schema]]:
    schema = schema_of(flow)
    [(name, form)] = schema["properties"].items()
    return list(leaves(schema, form, name))


@pytest.mark.parametrize("flow", [*FLOWS, *BUTTONS], ids=lambda flow: flow.name)
def test_every_setting_of_a_form_explains_itself(flow: Flow[..., Any]) -> None:
    found = settings_of(flow)
    assert len(found) > (80 if flow in FLOWS else 1)
    for path, field in found:
        assert not {"anyOf", "oneOf", "allOf"} & field.keys(), f"{path}: a union is a puzzle in a form"
        assert len(field["description"]) > 10, path
        assert field["type"] in ("string", "integer", "number", "boolean", "array", "object"), path
        if "properties" in field:
            assert field["additionalProperties"] is False, f"{path}: an unknown key would be dropped in silence"
        elif not path.endswith(".store"):  # what LM_STORE says on the machine that runs it
            assert ("default" in field) is ((flow.name, path) not in REQUIRED), path
        if "." in path:  # else it is a flow's parameter, which Prefect titles by its name
            title = field["title"]
            assert title[0].isupper(), path
            assert not re.search(r"_| [A-Z][a-z]", title), f"{path}: {title}"


@pytest.mark.parametrize("flow", [*FLOWS, *BUTTONS], ids=lambda flow: flow.name)
def test_every_number_of_a_form_has_bounds_and_a_unit(flow: Flow[..., Any]) -> None:
    numbers = [(path, field) for path, field in settings_of(flow) if field["type"] in ("integer", "number")]
    for path, field in numbers:
        assert {"minimum", "exclusiveMinimum"} & field.keys(), path
        assert {"maximum", "exclusiveMaximum"} & field.keys(), path
        assert _UNITS.search(f"{field['title']}. {field['description']}"), f"{path} does not say what it counts"
    assert len(numbers) > 40 or flow in BUTTONS


@pytest.mark.parametrize("flow", [*FLOWS, *BUTTONS], ids=lambda flow: flow.name)
def test_titles_within_a_group_differ(flow: Flow[..., Any]) -> None:
    titles = [(path.rpartition(".")[0], field["title"]) for path, field in settings_of(flow)]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("flow", [*FLOWS, *BUTTONS], ids=lambda flow: flow.name)
def test_the_form_is_the_one_that_was_looked_at(flow: Flow[..., Any], check_golden: Callable[[str, str], None]) -> None:
    check_golden(f"{flow.name}.json", json.dumps(schema_of(flow), ensure_ascii=False, indent=1) + "\n")
