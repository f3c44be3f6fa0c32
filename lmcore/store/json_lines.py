"""JSON lines."""

from typing import Any

from lmcore.store.strict_json import to_json


def json_line(content: Any) -> bytes:
    """One line of JSON with its end, UTF-8."""
    return (to_json(content) + "\n").encode()
