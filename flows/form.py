"""What the forms of all flows have in common: fields, and a flow that takes settings instead of fields.

A field is flat and plain, since the UI and schedules merge parameters by their names alone and lose what is nested,
optional or secret. The default of a text is empty: whoever clears a field gets the default. Each field is declared
once, as a type with its description.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, cast, get_args

from cyclopts import Parameter
from prefect import Flow, get_run_logger
from prefect.utilities.callables import parameter_docstrings
from pydantic import Field

from lmcore.cli.app import Pipeline
from lmcore.cli.options import Count, Texts
from lmcore.settings.config import RunConfig
from lmcore.settings.read import CUSTOM, Settings, Tables, given, settings_of, settings_text, without_effect
from lmcore.settings.section import NAME, Text
from tasks.policies import restart_after_crash
from tasks.run_process import end_as_cancelled, settle_in
from tasks.server import reachable_server

P = ParamSpec("P")
R = TypeVar("R")

TextFiles = Annotated[
    Texts,
    Parameter(
        help="Files, folders (read recursively), globs and URLs (s3://, gs://, hf://, https://). Empty: the text of "
        "the chosen size, if it has one."
    ),
]
Document = Annotated[
    Literal["auto", "line", "paragraph", "file"],
    Parameter(
        help="What one document of a plain text is. auto: in .txt a line or a paragraph, as the beginning of the file "
        "suggests; the whole file in everything else."
    ),
]
Size = Literal["tiny", "small", "base", "custom"]
"""A preset, or none."""
Length = Annotated[str, Field(pattern=r"^([0-9][0-9_]*(\.[0-9]+)?[kMG]? ?(steps|tokens|epochs))?$")]
"""Such as "700 steps", "2.5M tokens" or "3 epochs"."""
Bytes = Annotated[int, Field(ge=1, le=10**15)]
Minutes = Count
Name = Annotated[str, Field(pattern=f"^({NAME})?$")]
"""That of a run. Empty: none is given."""
Repository = Annotated[str, Field(pattern=f"^({NAME}/{NAME})?$")]
Advanced = Annotated[
    Text,
    Parameter(
        help="All other settings, as TOML: a line [train] and below it batch_size = 16. They win over the size and "
        "over the fields above."
    ),
]

ACTION: dict[str, Any] = {
    "persist_result": False,
    "result_serializer": "json",
    "on_running": [settle_in],
    "on_crashed": [end_as_cancelled],
}
"""Options of a flow that does one thing and whose page says what came of it."""
STAGES: dict[str, Any] = ACTION | {"on_crashed": [end_as_cancelled, restart_after_crash]}
"""Options of a flow of stages, which a run that is started again continues."""


class FormFlow(Flow[P, R]):
    """A flow whose parameters are the fields of a form; from Python it also takes the settings themselves."""

    def __call__(self, *fields: Any, **named: Any) -> Any:
        """Run the flow with its fields, or with a ``RunConfig`` as the only one that has no name.

        Raises ConfigError at once when the configured server does not answer, or PREFECT_HOME cannot be written.
        """
        if fields and isinstance(config := fields[0], RunConfig):
            fields, named = fields[1:], {"size": CUSTOM, "advanced": settings_text(config), **named}
        with reachable_server():
            return super().__call__(*map(_plain, fields), **{name: _plain(value) for name, value in named.items()})

    def with_options(self, **options: Any) -> "FormFlow[P, R]":
        """As Prefect's, which would make a plain ``Flow`` of it."""
        flow = super().with_options(**options)
        flow.__class__ = type(self)
        return cast("FormFlow[P, R]", flow)


def _plain(value: Any) -> Any:
    """Paths are text in a form."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def form(pipeline: Pipeline) -> Callable[[Callable[P, R]], FormFlow[P, R]]:
    """A decorator that makes the flow of a pipeline from a function of its fields."""
    return lambda function: FormFlow(documented(function), name=pipeline.flow, description=pipeline.about, **STAGES)


def documented(function: Callable[P, R]) -> Callable[P, R]:
    """The function; its docstring describes all fields under ``Args:``, where Prefect reads what a form shows.

    A description is that of the docstring, else that of the field's type.
    """
    about, own = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0], parameter_docstrings(function.__doc__)
    fields = inspect.signature(function).parameters.values()
    lines = [f"    {field.name}: {own.get(field.name) or _description(field.annotation)}" for field in fields]
    function.__doc__ = "\n".join([about, "", "Args:", *(line.replace("\n", " ") for line in lines)])
    return function


def _description(annotation: Any) -> str:
    helps = [each.help for each in get_args(annotation) if isinstance(each, Parameter) and each.help]
    return " ".join(helps[-1].split()) if helps else ""


def chosen(kind: type[Settings], size: str, advanced: str, fields: Tables, unused: tuple[str, ...] = ()) -> Settings:
    """The settings of a run, which its log begins with. ``unused`` are sections that the flow does not look at."""
    entered = given(kind, fields)
    config = settings_of(kind, size, entered, advanced)
    log = get_run_logger()
    about = "" if size == CUSTOM else f"size {size}; "
    log.info("%sall settings that are not the defaults:\n%s", about, settings_text(config))
    for what in without_effect(entered, advanced, config, unused):
        log.warning("without effect: %s", what)
    return config
