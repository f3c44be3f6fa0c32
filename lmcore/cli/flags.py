"""A command whose flags are settings: every field by its dotted name, with the field's own help.

cyclopts reads the words; what they mean is left to the model, which checks settings from everywhere in the same way.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from cyclopts import Group, Parameter, Token
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lmcore.errors import ConfigError
from lmcore.settings.config import RunConfig
from lmcore.settings.read import preset_names, settings_of_flags
from lmcore.settings.urls import is_url
from lmcore.settings.validation import flag

COMMON = [
    *("store", "run", "fresh"),
    *("corpus.paths", "corpus.sources", "corpus.include", "corpus.exclude", "corpus.document", "corpus.text_field"),
    *("tokenizer.source", "tokenizer.vocab_size", "dataset.block_size", "dataset.weights"),
    *("model.architecture", "model.layers", "model.width", "model.heads"),
    *("train.max_steps", "train.epochs", "train.max_minutes", "train.batch_size", "train.learning_rate"),
    *("train.warmup", "train.optimizer", "train.init_from", "train.device", "sample.prompts"),
    *("retraining.model_name", "retraining.min_new_bytes", "retraining.replay", "gate.old_margin"),
]
"""What most people set. ``--help`` shows these, ``--help-all`` every setting."""

_LONGEST_DEFAULT = 60
"""Characters of a default value that help repeats."""
_SEPARATOR = "__"
"""Stands for the dot in the name of a parameter; no field has it in its name."""
Settings = TypeVar("Settings", bound=RunConfig)


def command_of(
    kind: type[Settings], about: str, run: Callable[[Settings], None], show_all: bool
) -> Callable[..., None]:
    """A command whose flags are ``--config`` and the fields of ``kind``. ``run`` gets the settings."""

    def command(config: str = "", **flags: Any) -> None:
        changes: dict[str, Any] = {}
        for name, value in flags.items():
            section, _, field = name.rpartition(_SEPARATOR)
            (changes.setdefault(section, {}) if section else changes)[field] = value
        run(settings_of_flags(kind, changes, config))

    parameters = [_config(), *_parameters(kind, show_all)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = about
    return command


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
                yield _parameter(f"{name}.{field}", field_info, show_all, name, number)
        else:
            yield _parameter(name, info, show_all, "run", len(kind.model_fields))


def _parameter(name: str, info: FieldInfo, show_all: bool, section: str, number: int) -> inspect.Parameter:
    hint, metavar = _hint(info.annotation)
    kind = get_origin(hint) or hint
    is_common, group = name in COMMON, section.capitalize()
    option = Parameter(
        name=flag(name),
        negative=f"--no-{flag(name)[2:]}" if kind in (bool, list) else (),
        help=" ".join((info.description or "").split()),
        metavar=metavar,
        group=Group(group, sort_key=number) if is_common else Group(f"{group}, advanced", sort_key=100 + number),
        show=is_common or show_all,
        show_default=_shown_default(info),
        allow_repeating=None if kind in (list, dict) else True,  # the last one holds
        consume_multiple=1 if kind is list else None,
        n_tokens=-1 if kind is dict else None,
        converter=_by_name if kind is dict else None,
        accepts_keys=False,
        json_list=False,
    )
    # Only what the command line gives is handed on: the model knows its own defaults.
    default = get_args(hint)[0] if kind is Literal else kind()
    parameter = name.replace(".", _SEPARATOR)
    return inspect.Parameter(
        parameter, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[hint, option]
    )


def _shown_default(info: FieldInfo) -> Any:
    default = info.get_default(call_default_factory=True)
    text = " ".join(map(str, default)) if isinstance(default, list) else str(default)
    return (lambda _: text) if default not in ("", [], {}, [""]) and len(text) <= _LONGEST_DEFAULT else False


def _hint(annotation: Any) -> tuple[Any, str | None]:
    """What cyclopts is to take for a field, and how help names a value. Numbers stay text: the model reads them."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return _hint(get_args(annotation)[0])
    if annotation is bool or origin is Literal:
        return annotation, None
    if origin is list:
        return list[str], "TEXT"
    if origin is dict:
        return dict[str, Any], "NAME=VALUE"
    return str, {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(annotation, "TEXT")


def _by_name(_: Any, tokens: Sequence[Token]) -> dict[str, Any]:
    """Values of web=0.7,wiki=0.3, in one word or several. A name that is given again has a list of values."""
    values: dict[str, list[str]] = {}
    for token in tokens:
        for pair in re.split(r",(?=[^,=]*=)", token.value.strip(",")):  # a path may hold commas
            name, equals, value = pair.partition("=")
            if not equals:
                raise ValueError(f"{token.value!r} is not NAME=VALUE")
            values.setdefault(name, []).append(value)
    return {name: given if given[1:] else given[0] for name, given in values.items()}


def check(config: RunConfig) -> None:
    """Raise the error that a run with these settings would end with, where names and folders alone show it."""
    from lmcore.corpus.listing import check_paths
    from lmcore.store.hub import is_local_path
    from lmcore.store.layout import check_store
    from lmcore.training.schedule import Schedule

    check_paths(config)
    for setting, name in (("tokenizer.source", config.tokenizer.source), ("train.init_from", config.train.init_from)):
        if is_local_path(name) and not is_url(name) and not Path(name).expanduser().exists():
            raise ConfigError(f"{setting}: {name} does not exist (looked in {Path.cwd()})")
    check_store(config.store.expanduser())
    train = config.train
    if train.max_steps and "epochs" not in train.warmup + train.decay:  # the steps follow from the settings alone
        Schedule.from_config(train, train.max_steps, blocks=1, block_size=config.dataset.block_size)
