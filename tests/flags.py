"""Settings from the words of a command line, without running anything."""

from typing import Any

from cyclopts import App

from lmcore.cli.flags import command_of
from lmcore.settings.config import RunConfig


def parse(*words: object, kind: type[RunConfig] = RunConfig) -> Any:
    """What a command whose settings are of a kind gets. Raises CycloptsError and ConfigError."""
    found: list[RunConfig] = []
    app = App(default_command=command_of(kind, "", found.append, show_all=True))
    command, bound, _ = app.parse_args([str(word) for word in words], print_error=False, exit_on_error=False)
    command(*bound.args, **bound.kwargs)
    return found[0]
