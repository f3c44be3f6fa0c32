"""Whether stored parameters are still those that a flow takes."""

from collections.abc import Iterator
from typing import Any

from prefect.utilities.schema_tools import validate


def misfits(schema: dict[str, Any], parameters: dict[str, Any]) -> list[str]:
    """What a flow with this schema would refuse, a few words each."""
    return list(_misfits(schema, parameters))


def _misfits(schema: dict[str, Any], parameters: dict[str, Any]) -> Iterator[str]:
    known = schema.get("properties", {})
    for name in parameters.keys() - known.keys():
        yield f"{name} (there is no such parameter)"
    taken = {name: value for name, value in parameters.items() if name in known}
    for error in validate(taken, schema, ignore_required=True):
        yield f"{'.'.join(map(str, error.absolute_path))} ({error.message:.100})"
