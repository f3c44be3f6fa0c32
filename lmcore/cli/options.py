"""Options that several actions share."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from lmcore.settings.config import default_store


def _expanded(kind: Any, tokens: Sequence[Token]) -> Path:
    return Path(tokens[0].value).expanduser()


def _amount(kind: Any, value: float) -> None:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("It must be 0 or more.")


Store = Annotated[Path, Parameter(help="Folder of everything that is made (LM_STORE).", converter=_expanded)]
STORE = default_store().expanduser()

OutputFile = Annotated[Path, Parameter(converter=_expanded, negative=())]
Amount = Annotated[float, Parameter(validator=_amount)]
Count = Annotated[int, Parameter(validator=_amount)]
DryRun = Annotated[bool, Parameter(help="Only say what would be done.", negative=())]
Version = Annotated[str, Parameter(help="NAME/v0001, or NAME for the champion.")]
ModelName = Annotated[str, Parameter(help="The model's name.")]
