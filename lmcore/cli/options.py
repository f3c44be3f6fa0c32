"""Parameters that several actions share, and how a parameter of a form differs from that of its command."""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from cyclopts import Parameter, Token
from pydantic import Field

from lmcore.settings.config import default_store
from lmcore.settings.section import NAME, NUMBER, Text
from lmcore.store.allowed_paths import check_allowed


@dataclass(frozen=True)
class InForm:
    """How the form of an action shows a parameter of its command: its default, and its type where that differs.

    A form's type has the patterns and bounds that the server checks. On a command line the action says what is wrong.
    """

    default: Any = inspect.Parameter.empty
    annotation: Any = None
    hidden: bool = False
    """There is no such field: the form uses the command's default."""


HIDDEN = InForm(hidden=True)


def _expanded(kind: Any, tokens: Sequence[Token]) -> Path:
    return Path(tokens[0].value).expanduser()


def _check_amount(kind: Any, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("It must be 0 or more.")


_STORE_HELP = "Folder of everything that is made. Empty: the environment variable LM_STORE, else ./store."

Store = Annotated[Text, Parameter(help=_STORE_HELP)]
OutputFile = Annotated[Path, Parameter(converter=_expanded, negative=())]
Amount = Annotated[float, Parameter(validator=_check_amount)]
Count = Annotated[int, Field(ge=0, le=1_000_000), Parameter(validator=_check_amount)]
DryRun = Annotated[bool, Parameter(help="Only say what would be done.", negative=()), InForm(True)]
"""Off on a command line, on in a form: one click too many removes nothing."""
Texts = Sequence[Text]
SomeText = Annotated[Text, Field(min_length=1)]
Reason = Annotated[str, Parameter(help="What the history says about it."), InForm("by hand", SomeText)]
ModelField = Annotated[str, Field(pattern=f"^{NAME}$"), Parameter(help="Name of the model: models/NAME in the store.")]
ModelName = Annotated[str, get_args(ModelField)[2], InForm("lm", ModelField)]
IdField = Annotated[str, Field(pattern=f"^({NUMBER})?$")]
VersionField = Annotated[str, Field(pattern=f"^({NAME}(/{NUMBER})?)?$")]
Version = Annotated[
    str, Parameter(help="Such as v0001, NAME/v0001, or NAME for its champion."), InForm("", VersionField)
]


def store_folder(store: str) -> Path:
    """The folder of a store. Empty: the default, which is LM_STORE, else ./store.

    Raises ConfigError when it is outside LM_DATA_ROOTS.
    """
    folder = (Path(store) if store else default_store()).expanduser().absolute()
    check_allowed(folder, "store")
    return folder


def version_name(model_name: str, version: str) -> str:
    """NAME/v0001 of a version: v0001 is one of ``model_name``, and an empty one is that model's champion."""
    return f"{model_name}/{version}" if re.fullmatch(NUMBER, version) else version or model_name
