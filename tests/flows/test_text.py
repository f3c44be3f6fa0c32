"""Every free text of every form has a pattern by which the server refuses a lone surrogate when a run is created."""

from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from prefect import Flow
from prefect.utilities.callables import parameter_schema

from flows.actions import OF_MODEL, OF_STORE
from flows.prepare_data import prepare_data
from flows.pretrain import pretrain
from flows.retrain import retrain

LONE = "a\ud83d"
FLOWS = [pretrain, prepare_data, retrain, *OF_MODEL, *OF_STORE]


def nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema within a schema."""
    if isinstance(schema, dict):
        yield schema
        for child in schema.values():
            yield from nodes(child)
    elif isinstance(schema, list):
        for child in schema:
            yield from nodes(child)


def accepts(schema: dict[str, Any], value: object) -> bool:
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: flow.name)
def test_no_text_and_no_name_of_a_form_takes_a_lone_surrogate(flow: Flow[..., Any]) -> None:
    found = list(nodes(parameter_schema(flow).model_dump(exclude_none=True)))
    strings = [node for node in found if node.get("type") == "string"]
    assert strings
    for node in strings:
        assert not accepts(node, LONE), node
    for node in found:
        if isinstance(node.get("additionalProperties"), dict):
            assert not accepts(node["propertyNames"], LONE), node
            assert accepts(node["propertyNames"], "名前😀"), node
