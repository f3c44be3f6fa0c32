"""What the forms of all flows have in common: kinds of fields, and a flow that takes settings instead of fields.

A field is flat and plain, since the UI and schedules merge parameters by their names alone and lose what is nested,
optional or secret. The default of a text is empty: whoever clears a field gets the default.
"""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, ParamSpec, TypeVar, cast

from prefect import Flow, get_run_logger
from pydantic import Field

from lmcore.settings.config import RunConfig, default_store
from lmcore.settings.form import CUSTOM, Settings, Tables, given, settings_of, settings_text, without_effect
from lmcore.settings.section import NAME, Text
from tasks.policies import restart_after_crash

P = ParamSpec("P")
R = TypeVar("R")

Size = Literal["tiny", "small", "base", "custom"]
"""A preset, or none."""
Document = Literal["auto", "line", "paragraph", "file"]
Texts = Sequence[Text]
SomeText = Annotated[Text, Field(min_length=1)]
Length = Annotated[str, Field(pattern=r"^([0-9][0-9_]*(\.[0-9]+)?[kMG]? ?(steps|tokens|epochs))?$")]
"""Such as "700 steps", "2.5M tokens" or "3 epochs"."""
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Bytes = Annotated[int, Field(ge=1, le=10**15)]
ModelName = Annotated[str, Field(pattern=f"^{NAME}$")]
Name = Annotated[str, Field(pattern=f"^({NAME})?$")]
"""That of a run. Empty: none is given."""
Repository = Annotated[str, Field(pattern=f"^({NAME}/{NAME})?$")]


BUTTON: dict[str, Any] = {"persist_result": False, "result_serializer": "json"}
"""Options of a flow that does one thing and whose page says what came of it."""
PIPELINE: dict[str, Any] = BUTTON | {"on_crashed": [restart_after_crash]}
"""Options of a flow of stages, which a run that is started again continues."""


class FormFlow(Flow[P, R]):
    """A flow whose parameters are the fields of a form; from Python it also takes the settings themselves."""

    def __call__(self, *fields: Any, **named: Any) -> Any:
        """Run the flow with its fields, or with a ``RunConfig`` as the only one that has no name."""
        if fields and isinstance(config := fields[0], RunConfig):
            fields, named = fields[1:], {"size": CUSTOM, "advanced": settings_text(config), **named}
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


def form(**options: Any) -> Callable[[Callable[P, R]], FormFlow[P, R]]:
    """A decorator that makes a flow; the descriptions of its fields stand under ``Args:`` in the docstring."""

    def decorate(function: Callable[P, R]) -> FormFlow[P, R]:
        about = (inspect.getdoc(function) or "").partition("\n\nArgs:")[0]
        return FormFlow(function, description=about, **options)

    return decorate


def chosen(kind: type[Settings], size: str, advanced: str, fields: Tables, unused: tuple[str, ...] = ()) -> Settings:
    """The settings of a run, which its log begins with. ``unused`` are sections that the flow does not look at."""
    entered = given(kind, fields)
    config = settings_of(kind, size, entered, advanced)
    log = get_run_logger()
    log.info("size %s; all settings that are not the defaults:\n%s", size, settings_text(config))
    for what in without_effect(entered, advanced, config, unused):
        log.warning("without effect: %s", what)
    return config


def folder_of(store: str) -> Path:
    """The folder of a store from its field; empty: the default."""
    return (Path(store) if store else default_store()).expanduser().absolute()
