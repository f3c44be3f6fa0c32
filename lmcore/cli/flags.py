"""The flags of a settings model: every field by its dotted name, with the field's own help.

cyclopts reads the words; what they mean is left to the model, which checks settings from everywhere in the same way.
"""

import inspect
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from cyclopts import Group, Parameter, Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lmcore.settings.presets import preset_names

COMMON = {
    "": ["store", "run", "fresh"],
    "corpus": ["paths", "sources", "include", "exclude", "document", "text_field"],
    "tokenizer": ["source", "vocab_size"],
    "dataset": ["block_size", "weights"],
    "model": ["architecture", "layers", "width", "heads"],
    "train": [
        *("max_steps", "epochs", "max_minutes", "batch_size", "learning_rate", "warmup"),
        *("optimizer", "init_from", "device"),
    ],
    "sample": ["prompts"],
    "retraining": ["model_name", "min_new_bytes", "replay"],
    "gate": ["old_margin"],
}
"""What most people set. ``--help`` shows these, ``--help-all`` every setting."""

_LONGEST_DEFAULT = 60
"""Characters of a default value that help repeats."""
_SEPARATOR = "__"
"""Stands for the dot in the name of a parameter; no field has it in its name."""


def command_of(
    kind: type[BaseModel], about: str, run: Callable[[dict[str, Any], str], None], show_all: bool
) -> Callable[..., None]:
    """A command whose flags are ``--config`` and the fields of ``kind``.

    ``run`` gets what the flags say, as nested dictionaries of strings, and the value of ``--config``.
    """

    def command(config: str = "", **flags: Any) -> None:
        run(_nested(flags), config)

    parameters = [_config(), *_parameters(kind, show_all)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = about
    return command


def flag(*path: str) -> str:
    """--train.max-steps of ("train", "max_steps")."""
    return "--" + ".".join(path).replace("_", "-")


def _nested(flags: dict[str, Any]) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    for name, value in flags.items():
        *sections, field = name.split(_SEPARATOR)
        table = changes
        for section in sections:
            table = table.setdefault(section, {})
        table[field] = value
    return changes


def _config() -> inspect.Parameter:
    option = Parameter(
        name=("--config", "--preset"),
        help=f"A TOML file with settings, or the name of a preset: {', '.join(preset_names())}. Flags override it.",
        metavar="NAME",
        group=Group("Settings", sort_key=0),
        show_default=False,
        allow_repeating=True,  # the last one holds
    )
    return inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default="", annotation=Annotated[str, option])


def _parameters(kind: type[BaseModel], show_all: bool) -> Iterator[inspect.Parameter]:
    for number, (name, info) in enumerate(kind.model_fields.items(), 1):
        section = info.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            for field, field_info in section.model_fields.items():
                yield _parameter(field_info, show_all, number, (name, field))
        else:
            yield _parameter(info, show_all, len(kind.model_fields), (name,))


def _parameter(info: FieldInfo, show_all: bool, number: int, path: tuple[str, ...]) -> inspect.Parameter:
    hint, metavar = _hint(info.annotation)
    kind = get_origin(hint) or hint
    is_common = path[-1] in COMMON.get(".".join(path[:-1]), [])
    option = Parameter(
        name=flag(*path),
        negative=f"--no-{flag(*path)[2:]}" if kind in (bool, list) else (),
        help=" ".join((info.description or "").split()),
        metavar=metavar,
        group=_group(path, number, is_common),
        show=is_common or show_all,
        show_default=_shown_default(info),
        allow_repeating=None if kind in (list, dict) else True,  # the last one holds
        consume_multiple=1 if kind is list else None,
        n_tokens=-1 if kind is dict else None,
        converter=_to_dictionary if kind is dict else None,
        json_dict=False,
        json_list=False,
    )
    # Only what the command line gives is handed on: the model knows its own defaults.
    default = get_args(hint)[0] if kind is Literal else kind()
    name = _SEPARATOR.join(path)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option])


def _group(path: tuple[str, ...], number: int, is_common: bool) -> Group:
    section = path[0].capitalize() if len(path) > 1 else "Run"
    return Group(section, sort_key=number) if is_common else Group(f"{section}, advanced", sort_key=100 + number)


def _shown_default(info: FieldInfo) -> Any:
    default = info.get_default(call_default_factory=True)
    text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return (lambda _: text) if default not in ("", [], {}, [""]) and len(text) <= _LONGEST_DEFAULT else False


def _hint(annotation: Any) -> tuple[Any, str | None]:
    """What cyclopts is to take for a field, and how help names a value. Numbers stay text: the model reads them."""
    origin = get_origin(annotation)
    if annotation is bool or origin is Literal:
        return annotation, None
    if origin is list:
        return list[str], "TEXT"
    if origin is dict:
        value, _ = _hint(get_args(annotation)[1])
        return types.GenericAlias(dict, (str, value)), "NAME=VALUE"
    if origin is Annotated:
        return _hint(get_args(annotation)[0])
    return str, {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(annotation, "TEXT")


def _to_dictionary(hint: Any, tokens: Any) -> dict[str, Any]:
    """A dictionary of lists, or of single values, of which the last holds."""
    given = _keyed(tokens) if isinstance(tokens, dict) else _pairs(tokens)
    return given if get_args(hint)[1] == list[str] else {name: values[-1] for name, values in given.items()}


def _pairs(tokens: Iterable[Token]) -> dict[str, list[str]]:
    """web=0.7,wiki=0.3, in one word or several."""
    pairs: dict[str, list[str]] = {}
    for token in tokens:
        for pair in _separate(token.value):
            name, equals, value = pair.partition("=")
            if not equals:
                raise ValueError(f"{token.value!r} is not NAME=VALUE")
            pairs.setdefault(name, []).append(value)
    return pairs


def _separate(value: str) -> list[str]:
    """The pairs of a word. A comma separates two only where another NAME= follows: a path may hold commas."""
    pairs: list[str] = []
    for part in filter(None, value.split(",")):
        if "=" in part or not pairs:
            pairs.append(part)
        else:
            pairs[-1] += f",{part}"
    return pairs


def _keyed(tokens: dict[str, Any], prefix: str = "") -> dict[str, list[str]]:
    """The words given to --dataset.weights.web and its like. A name that holds dots arrives in parts."""
    values: dict[str, list[str]] = {}
    for name, given in tokens.items():
        if isinstance(given, dict):
            values |= _keyed(given, f"{prefix}{name}.")
        else:
            values[prefix + name] = [token.value for token in given]
    return values
