"""What one look of the doctor found."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """Of one check. It is wrong exactly if there is a ``remedy``."""

    name: str
    fact: str
    """What was seen."""
    remedy: str = ""
    """What a person does about it."""
    mend: Callable[[], object] | None = None
    """Does it safely: nothing that somebody still uses is touched."""


Check = Callable[[], Finding]
