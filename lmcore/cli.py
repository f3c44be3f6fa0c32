"""The command line: every field of ``RunConfig`` is a flag, a TOML file gives the rest."""

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from lmcore import signals
from lmcore.config import RunConfig, SampleConfig, default_store
from lmcore.errors import ERROR_PREFIX, STOPPED_STATUS, ConfigError, LMError, StoppedError

Settings = TypeVar("Settings", bound=RunConfig)

_USAGE = "[--config FILE.toml] [--section.field VALUE ...]   (--help lists every field)"
_PATHS = {"--corpus.paths": "paths", "--corpus.validation_paths": "validation_paths"}
_OF_THE_FILES_CORPUS = ("include", "exclude", "document")


def load_config(path: Path, kind: type[Settings] = RunConfig) -> Settings:  # type: ignore[assignment]
    """The settings of a TOML file. Raises ConfigError that names the file and the field."""
    try:
        return kind.model_validate(_read_toml(path))
    except ValidationError as error:
        raise ConfigError(_explain(error, str(path))) from None


def parse(
    arguments: list[str],
    program: str,
    about: str,
    kind: type[Settings] = RunConfig,  # type: ignore[assignment]
) -> Settings:
    """Settings of a kind from ``--config FILE.toml`` and flags such as ``--train.max_steps 200``, which go first.

    ``--corpus.paths`` also puts include, exclude and document back to their defaults, since those of the file
    describe the file's own corpus. Raises ConfigError; exits with help on --help and on an unknown flag.
    """
    arguments = [_underscored(argument) for argument in arguments]
    taken, arguments = _take(("--config", *_PATHS), arguments)
    path = Path(taken["--config"][-1]) if "--config" in taken else None
    paths = {
        _PATHS[flag]: [path for value in taken[flag] for path in _paths(value)] for flag in _PATHS if flag in taken
    }
    content = _read_toml(path) if path else {}
    corpus = content.get("corpus", {})
    if paths and isinstance(corpus, dict):
        if "paths" in paths:
            corpus = {name: value for name, value in corpus.items() if name not in _OF_THE_FILES_CORPUS}
        content["corpus"] = corpus | paths

    class CommandLine(BaseSettings, kind):  # type: ignore[misc,valid-type]
        model_config = SettingsConfigDict(cli_implicit_flags=True)

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            parser = argparse.ArgumentParser(
                prog=program,
                description=f"{about} --config FILE.toml gives settings, and flags go before it.",
                usage=f"{program} {_USAGE}",
                allow_abbrev=False,
            )
            flags: Any = CliSettingsSource(settings_cls, cli_parse_args=arguments, root_parser=parser)
            return flags, InitSettingsSource(settings_cls, content)

    try:
        settings = CommandLine()
    except ValidationError as error:
        raise ConfigError(_explain(error, str(path or "command line"))) from None
    except SettingsError as error:
        raise ConfigError(
            f"command line: {error}. A name with a comma, or one that begins with [ or {{, stands in quotes and "
            """brackets: --corpus.exclude '["[a-z]*"]'; one with a quote in it, in the --config file"""
        ) from None
    return kind.model_validate(settings.model_dump())


def verb_parser(verb: str, **arguments: str) -> argparse.ArgumentParser:
    """The parser of ``python -m lmcore VERB`` that works in a store: positional arguments with their help, --store."""
    parser = argparse.ArgumentParser(prog=f"python -m lmcore {verb}")
    for name, about in arguments.items():
        parser.add_argument(name, help=about)
    parser.add_argument("--store", type=lambda text: Path(text).expanduser(), default=default_store().expanduser())
    return parser


def count(text: str) -> int:
    """The type of an argument that counts."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 on")
    return int(text)


def sample_settings(options: dict[str, Any]) -> SampleConfig:
    """Checked settings of samples. Raises ConfigError that names what is wrong."""
    try:
        return SampleConfig.model_validate(options)
    except ValidationError as error:
        raise ConfigError(_explain(error, "command line")) from None


def read_prompts(path: Path) -> list[str]:
    """The lines of a file. Raises ConfigError when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--prompts-file {path}: {error}") from None


def main(verb: Callable[[], None]) -> None:
    """Run a command; a deliberate error becomes one line on standard error and exit status 1.

    Ctrl-C ends it with status 130; SIGTERM, as a training that stopped before its end, with STOPPED_STATUS.
    """
    interruption = signals.Interruption()
    try:
        verb()
    except (KeyboardInterrupt, signals.Terminated):
        pass  # said below
    except StoppedError as error:
        print(error, file=sys.stderr)
        sys.exit(STOPPED_STATUS)
    except (LMError, OSError) as error:
        print(f"{ERROR_PREFIX}{error}", file=sys.stderr)
        sys.exit(1)
    finally:
        if interruption.signal:  # whatever came of it: a file that was closed, a call that failed
            signals.leave(interruption.signal)
        signals.end_at_once()


def _take(flags: tuple[str, ...], arguments: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """The values of some flags, as they stand and in their order, and the other arguments."""
    found: dict[str, list[str]] = {}
    rest = []
    waiting = iter(arguments)
    for argument in waiting:
        name, equals, value = argument.partition("=")
        if name in flags:
            found.setdefault(name, []).append(value if equals else next(waiting, ""))
        else:
            rest.append(argument)
    return found, rest


def _underscored(argument: str) -> str:
    """--fresh-tokenizer is --fresh_tokenizer; values stay as they are, and so does the beginning of --no-fresh."""
    flag, equals, value = argument.partition("=")
    parts = re.fullmatch("(--(?:no-)?)(.+)", flag)
    return f"{parts[1]}{parts[2].replace('-', '_')}{equals}{value}" if parts else argument


def _paths(value: str) -> list[str]:
    """pydantic-settings would split a path at its commas and stumble over its quotes. A JSON list is several paths."""
    if not value.startswith("[") or Path(value).exists():
        return [value]
    try:
        return [str(path) for path in json.loads(value)]
    except ValueError:
        return [value]


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (FileNotFoundError, IsADirectoryError):
        raise ConfigError(f"--config {path}: there is no such file (looked in {Path.cwd()})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {path}: {error}") from None


def _explain(error: ValidationError, where: str) -> str:
    rows = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"]) or "settings"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "there is no such setting; --help lists all"
        given = "" if problem["type"] == "extra_forbidden" else f" (given: {problem['input']!r:.80})"
        rows.append(f"{name}: {message}{given}")
    return f"{where}: " + "; ".join(rows)
