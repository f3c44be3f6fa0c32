"""The result of one check of the doctor."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check. Something is wrong exactly if there is a ``remedy``."""

    name: str
    fact: str
    """What was seen."""
    remedy: str = ""
    """What a person does about it."""
    fix: Callable[[], object] | None = None
    """Does it safely: it touches nothing that somebody still uses."""

    def line(self) -> str:
        """The finding in words; two lines if something is wrong."""
        if not self.remedy:
            return f"ok     {self.name}: {self.fact}"
        return f"WRONG  {self.name}: {self.fact}\n       to fix it: {self.remedy}"


Check = Callable[[], Finding]
