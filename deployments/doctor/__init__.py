"""``lm doctor``: checks everything that a run needs and says how to fix what is wrong.

examine.py         all checks in their order
machine.py         packages, store, disk, GPU, locks
server.py          deployments, parameters, work pools, limits, automations, dead runs
database_rows.py   rows of the SQLite database that the server cannot show
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """The result of one check. Something is wrong exactly if there is a ``remedy``."""

    name: str
    fact: str
    """What the check found."""
    remedy: str = ""
    """How to fix it."""
    fix: Callable[[], object] | None = None
    """Fixes it without touching anything in use."""

    def line(self) -> str:
        """The finding as a line; two lines if something is wrong."""
        if not self.remedy:
            return f"ok     {self.name}: {self.fact}"
        return f"WRONG  {self.name}: {self.fact}\n       to fix it: {self.remedy}"


Check = Callable[[], Finding]
