"""The actions that need no Prefect, as one cyclopts application, and how a command line is run.

``python -m lmcore`` has these and its own pipeline; ``lm`` (deployments.cli) has these and the flows.
"""

import logging
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from cyclopts import App, CycloptsError, Group, MissingArgumentError, UnknownCommandError, UnusedCliTokensError

from lmcore.cli import models, runs, store
from lmcore.cli.checks import check
from lmcore.cli.command import USAGE_STATUS, escape_output, main
from lmcore.cli.flags import command_of
from lmcore.cli.pipeline import train
from lmcore.cli.settings import read
from lmcore.errors import ERROR_PREFIX
from lmcore.progress import StandardError
from lmcore.settings.config import RunConfig

HELP_ALL = "--help-all"
MAKE = Group("Make a model", sort_key=0)
LOOK = Group("Look at it", sort_key=1)
VERSIONS = Group("Versions of a model", sort_key=2)
STORE = Group("What is in the store", sort_key=3)

EPILOGUE = f"{HELP_ALL} lists every setting."
_EPILOGUE = (
    "The last line on standard output is one JSON object. A command that was stopped continues when given again."
)


def new_app(name: str, about: str) -> App:
    """An application with every action that works in a store, under one name each."""
    app = App(name, help=about, help_epilogue=_EPILOGUE, help_format="plaintext", version=_version)
    app.command(train, group=MAKE)
    app.command(runs.generate, group=LOOK)
    app.command(runs.evaluate, group=LOOK)
    app.command(runs.plot, group=LOOK)
    app.command(models.models, group=VERSIONS)
    app.command(models.promote_version, name="promote", group=VERSIONS)
    app.command(models.roll_back, name="rollback", group=VERSIONS)
    app.command(models.diff_versions, name="diff", group=VERSIONS)
    app.command(models.replay_version, name="replay", group=VERSIONS)
    app.command(models.prune_versions, name="prune", group=VERSIONS)
    app.command(models.push_version, name="push", group=VERSIONS)
    app.command(store.ledger, group=STORE)
    app.command(store.verify, group=STORE)
    app.command(store.repair, group=STORE)
    app.command(store.seen_by, group=STORE)
    app.command(store.forget_document, name="forget", group=STORE)
    app.command(store.collect_garbage, name="gc", group=STORE)
    app.register_install_completion_command(help="Let the shell complete commands and settings.")
    return app


def add_pipeline(
    app: App, name: str, kind: type[RunConfig], about: str, run: Callable[[Any], None], show: bool = True
) -> None:
    """An action whose flags are the settings of a kind."""
    app.command(pipeline(kind, about, run), name=name, group=MAKE, help_epilogue=EPILOGUE, show=show)


def add_prepare(app: App, run: Callable[[Any], None]) -> None:
    """The action ``prepare``, which also answers to its earlier name."""
    for name in ("prepare", "tokenize"):
        add_pipeline(app, name, RunConfig, "Encode a corpus into shards.", run, show=name == "prepare")


def run_pipeline(name: str, kind: type[RunConfig], about: str, run: Callable[[Any], None]) -> None:
    """Be a program of one action, whose flags are the settings of a kind."""
    app = App(name, help=about, help_epilogue=EPILOGUE, help_format="plaintext", version=_version)
    app.default(pipeline(kind, about, run))
    run_app(app)


def pipeline(kind: type[RunConfig], about: str, run: Callable[[Any], None]) -> Callable[..., None]:
    """An action that checks the settings on the command line before it runs."""

    def checked(changes: dict[str, Any], file: str) -> None:
        config = read(kind, changes, file)
        check(config)
        run(config)

    return command_of(kind, about, checked, show_all=_shows_all())


def run_app(app: App) -> None:
    """Run what the command line asks for. One that is not understood costs a line and exit status USAGE_STATUS."""
    logging.basicConfig(format="%(message)s", handlers=[StandardError()])
    logging.getLogger("lmcore").setLevel(logging.INFO)  # of libraries, warnings only
    escape_output()
    words = ["--help" if word == HELP_ALL else word for word in sys.argv[1:]]
    try:
        refuse_undecodable(words)
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except (CycloptsError, ValueError) as error:
        print(f"{ERROR_PREFIX}{_said(error)}", file=sys.stderr)
        sys.exit(USAGE_STATUS)
    main(lambda: command(*bound.args, **bound.kwargs))


def refuse_undecodable(words: list[str]) -> None:
    """Raise ValueError that names the first argument that is not text in the encoding of this locale."""
    for number, word in enumerate(words):
        name, equals, _ = word.partition("=")
        if not equals or not name.startswith("--"):
            before = words[number - 1] if number else ""
            name = before if before.startswith("--") else f"argument {number + 1}"
        try:
            word.encode()
        except UnicodeEncodeError:
            shown, encoding = word.encode(errors="surrogateescape"), sys.getfilesystemencoding()
            fault = "is not UTF-8" if encoding == "utf-8" else f"is not {encoding}, as this locale is: set PYTHONUTF8=1"
            raise ValueError(f"{name}: {shown!r} {fault}") from None


def _said(error: Exception) -> str:
    if isinstance(error, UnknownCommandError) and (error.unused_tokens or [""])[0].startswith("--"):
        return f"{(error.unused_tokens or [''])[0]}: settings follow the command, as in pretrain --preset tiny"
    if isinstance(error, UnusedCliTokensError):
        return f"{' '.join(error.unused_tokens or [])}: there is no such argument; settings begin with --, see --help"
    if isinstance(error, MissingArgumentError) and error.argument:
        return f"{error.keyword or error.argument.name}: a value is missing, see --help"
    return " ".join(str(error).split())


def _shows_all() -> bool:
    """Completion knows every setting too."""
    return HELP_ALL in sys.argv or "--install-completion" in sys.argv


def _version() -> str:
    try:
        return version("lm-pipeline")
    except PackageNotFoundError:
        return "not installed"
