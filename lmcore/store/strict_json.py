"""JSON that every program reads (RFC 8259): without NaN and infinities.

A number that is not finite is written as null, with a word beside it:

    {"loss": null, "loss_is": "NaN"}

``from_json`` restores the number. It also reads the NaN and Infinity that Python writes.
"""

import json
import math
from typing import Any

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_SUFFIX = "_is"


def to_json(content: Any, indent: int | None = None) -> str:
    """JSON on one line, or indented; keys in the order given."""
    return json.dumps(finite(content), ensure_ascii=False, indent=indent, allow_nan=False)


def from_json(text: str | bytes) -> Any:
    """The content that ``to_json`` wrote. Raises ValueError when ``text`` is no JSON."""
    return json.loads(text, object_hook=_restored)


def finite(content: Any) -> Any:
    """The content as it is written: null and a word for each number that is not finite."""
    if isinstance(content, dict):
        words = {
            f"{name}{_SUFFIX}": _word(value)
            for name, value in content.items()
            if isinstance(value, float) and not math.isfinite(value)
        }
        return {name: finite(value) for name, value in content.items()} | words
    if isinstance(content, list | tuple):
        return [finite(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _word(figure: float) -> str:
    return "NaN" if math.isnan(figure) else "Infinity" if figure > 0 else "-Infinity"


def _restored(content: dict[str, Any]) -> dict[str, Any]:
    figures = {
        name.removesuffix(_SUFFIX): _WORDS[word]
        for name, word in content.items()
        if name.endswith(_SUFFIX) and isinstance(word, str) and word in _WORDS
    }
    figures = {name: figure for name, figure in figures.items() if content.get(name, 0) is None}
    words = {f"{name}{_SUFFIX}" for name in figures}
    return {name: figures.get(name, value) for name, value in content.items() if name not in words}
