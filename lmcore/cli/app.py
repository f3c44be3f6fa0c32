"""Every command, declared once, as one cyclopts application; and how a command line is run.

An action is a function of runs.py, versions.py or store.py. Its name is that of the command, its signature and its
docstring are the arguments and their help, and it returns an Outcome. flows/actions.py makes Prefect forms of the same
functions.
A pipeline is a command whose flags are all settings of a kind. ``lm`` (deployments.cli) runs pipelines as flows,
``python -m lmcore`` runs them without Prefect.
"""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import cyclopts
import pydantic
from cyclopts import App, CycloptsError, Group, Parameter

from lmcore.cli import runs, store, versions
from lmcore.cli.flags import check, command_of
from lmcore.cli.outcome import Outcome, main, print_outcome
from lmcore.cli.pipeline import train
from lmcore.errors import ERROR_PREFIX
from lmcore.progress import StandardError
from lmcore.settings.config import RunConfig
from lmcore.settings.retraining import RetrainConfig

_HELP_ALL = "--help-all"
_USAGE_STATUS = 2
"""Exit status of a command line that is not understood."""
_MAKE = Group("Make a model", sort_key=0)
ACTIONS: dict[Group, list[Callable[..., Outcome]]] = {
    Group("Look at it", sort_key=1): [runs.generate, runs.evaluate, runs.plot],
    Group("Versions of a model", sort_key=2): [
        *(versions.models, versions.promote, versions.rollback, versions.diff, versions.replay, versions.prune),
        versions.push,
    ],
    Group("What is in the store", sort_key=3): [
        *(store.ledger, versions.verify, store.repair, store.seen_by, store.forget, store.gc)
    ],
}
_ALL_SETTINGS = f"{_HELP_ALL} lists every setting."
_EPILOGUE = (
    "The last line on standard output is one JSON object. A command that was stopped continues when given again."
)


@dataclass(frozen=True)
class Pipeline:
    """A command whose flags are settings."""

    name: str
    flow: str
    """The name of the flow, and of its module in ``flows``."""
    about: str
    """What it does: of the command, and on the page of the flow."""
    kind: type[RunConfig] = RunConfig
    earlier_name: str = ""

    def command(self, run: Callable[[Any], None]) -> Callable[..., None]:
        """A command that checks its settings before it runs."""

        def checked(config: RunConfig) -> None:
            check(config)
            run(config)

        show_all = _HELP_ALL in sys.argv or "--install-completion" in sys.argv  # completion knows every setting too
        return command_of(self.kind, self.about, checked, show_all)


PREPARE = Pipeline("prepare", "prepare_data", "Encode a corpus into shards.", earlier_name="tokenize")
PRETRAIN = Pipeline("pretrain", "pretrain", "Train a model on a corpus, from text to report.")
RETRAIN = Pipeline("retrain", "retrain", "Train a model again if its text has grown.", RetrainConfig)


def new_app(name: str, about: str) -> App:
    """An application with every action that works in a store."""
    app = _app(name, about, _EPILOGUE)
    app.command(train, group=_MAKE)
    for group, actions in ACTIONS.items():
        for action in actions:
            app.command(action, group=group)
    app.register_install_completion_command(help="Let the shell complete commands and settings.")
    return app


def _app(name: str, about: str, epilogue: str) -> App:
    shown = Parameter(show_default=lambda default: None if default in ("", (), None, False, 0) else str(default))
    return App(
        name, help=about, help_epilogue=epilogue, help_format="plaintext", version=_version, default_parameter=shown
    )


def add_pipeline(app: App, pipeline: Pipeline, run: Callable[[Any], None]) -> None:
    """A command for a pipeline, under its earlier name too."""
    for name in filter(None, [pipeline.name, pipeline.earlier_name]):
        show = name == pipeline.name
        app.command(pipeline.command(run), name=name, group=_MAKE, help_epilogue=_ALL_SETTINGS, show=show)


def run_pipeline(program: str, pipeline: Pipeline, run: Callable[[Any], None]) -> None:
    """Be a program of one command."""
    app = _app(program, pipeline.about, _ALL_SETTINGS)
    app.default(pipeline.command(run))
    run_app(app)


def run_app(app: App) -> None:
    """Run what the command line asks for. One that is not understood costs a line and exit status 2."""
    logging.basicConfig(format="%(message)s", handlers=[StandardError()])
    logging.getLogger("lmcore").setLevel(logging.INFO)  # of libraries, warnings only
    main(lambda: _run(app, ["--help" if word == _HELP_ALL else word for word in sys.argv[1:]]))


def _run(app: App, words: list[str]) -> None:
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except (CycloptsError, ValueError) as error:
        print(f"{ERROR_PREFIX}{_said(error)}", file=sys.stderr)
        sys.exit(_USAGE_STATUS)
    print_outcome(command(*bound.args, **bound.kwargs))


def _said(error: Exception) -> str:
    unused = getattr(error, "unused_tokens", None) or [""]
    if isinstance(error, cyclopts.UnknownCommandError) and unused[0].startswith("--"):
        return f"{unused[0]}: settings follow the command, as in pretrain --preset tiny"
    if isinstance(error, cyclopts.UnusedCliTokensError):
        return f"{' '.join(unused)}: there is no such argument; settings begin with --, see --help"
    if isinstance(error.__cause__, pydantic.ValidationError) and isinstance(error, CycloptsError) and error.argument:
        fault = error.__cause__.errors()[0]["msg"].removeprefix("Value error, ")
        return f"{error.argument.name}: {fault}"
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument:
        return f"{error.keyword or error.argument.name}: a value is missing, see --help"
    return " ".join(str(error).split())


def _version() -> str:
    try:
        return version("lm-pipeline")
    except PackageNotFoundError:
        return "not installed"
