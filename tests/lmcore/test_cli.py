"""Flags over a file over defaults."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmcore import cli
from lmcore.config import TEXT_PATTERNS, CorpusConfig, RunConfig
from lmcore.errors import ConfigError
from tests.conftest import start

FILE = """
[corpus]
paths = ["stdlib:"]
include = ["*.py"]
exclude = ["test"]
document = "file"

[train]
max_steps = 7
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.toml"
    path.write_text(FILE)
    return path


def parse(*arguments: object) -> RunConfig:
    return cli.parse([str(argument) for argument in arguments], "program", "About.")


def test_flags_go_before_the_file_and_the_file_before_defaults(file: Path) -> None:
    config = parse("--config", file, "--train.batch_size", 3, "--fresh", "--store", "/x")
    assert (config.train.max_steps, config.train.batch_size, config.fresh) == (7, 3, True)
    assert config.store == Path("/x")
    assert parse(f"--config={file}", "--train.max_steps=9").train.max_steps == 9
    assert parse() == RunConfig()


def test_other_paths_put_back_what_described_the_files_corpus(file: Path) -> None:
    assert parse("--config", file).corpus.include == ["*.py"]
    corpus = parse("--config", file, "--corpus.paths", "a", "--corpus.paths", "b").corpus
    assert (corpus.paths, corpus.include, corpus.exclude, corpus.document) == (["a", "b"], TEXT_PATTERNS, [], "auto")
    corpus = parse("--config", file, "--corpus.paths=a", "--corpus.include", "*.md").corpus
    assert corpus.include == ["*.md"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.max_steps", "many"], r"train.max_steps: .*valid integer.*'many'"),
        (["--train.max_steps", "-3"], r"train.max_steps: .*greater than or equal to 0"),
        (["--model.width", "10"], "width 10 is not a multiple of heads 6"),
        (["--config", "/nowhere.toml"], "there is no such file"),
        (["--config"], "there is no such file"),
        (["--corpus.exclude", "[abc]*"], r"corpus.* stands in quotes and brackets"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[train]\nlr = 1", r"train.lr: there is no such setting"),
        ("[train", "run.toml"),
        ("train = 3", "run.toml: train: "),
    ],
)
def test_a_wrong_file_is_named(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    for read in (lambda: parse("--config", file), lambda: cli.load_config(file)):
        with pytest.raises(ConfigError, match=message):
            read()


def test_a_section_that_is_none_is_named_even_where_a_flag_gives_its_paths(file: Path) -> None:
    file.write_text("corpus = 1")
    with pytest.raises(ConfigError, match=r"run.toml: corpus: "):
        parse("--config", file, "--corpus.paths", "a")


def test_names_that_look_like_lists_are_given_in_brackets() -> None:
    exclude = ["[abc]*", "a,b", "{x}", "日本 語.txt"]
    assert parse("--corpus.exclude", json.dumps(exclude, ensure_ascii=False)).corpus.exclude == exclude


def test_a_byte_order_mark_is_no_setting(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + FILE.encode())
    assert parse("--config", file).train.max_steps == 7


def leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def flag(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"


def test_every_setting_is_a_flag_and_a_line_of_toml(tmp_path: Path) -> None:
    config = RunConfig(corpus=CorpusConfig(paths=["a", "b c"], exclude=["x"], validation_paths=["日本"]), run="r")
    settings = dict(leaves(config.model_dump(mode="json")))
    assert len(settings) > 50
    assert parse(*(flag(name, value) for name, value in settings.items())) == config
    (tmp_path / "all.toml").write_text(
        "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items())
    )
    assert parse("--config", tmp_path / "all.toml") == cli.load_config(tmp_path / "all.toml") == config


def test_an_unknown_flag_and_help_say_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--train.lr", "1")
    assert stopped.value.code == 2
    assert "--train.lr" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        parse("--help")
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert "--config" in shown
    assert "Peak learning rate" in shown


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        ("raise StoreError('the store is gone')", 1, "error: the store is gone\n"),
        ("raise StoppedError('stopped, saved')", 75, "stopped, saved\n"),
        ("os.kill(os.getpid(), 2)", 130, "interrupted: the same command continues\n"),
        ("os.kill(os.getpid(), 15)", 75, "interrupted: the same command continues\n"),
    ],
)
def test_a_deliberate_end_is_one_line_and_a_status(error: str, status: int, said: str) -> None:
    code = (
        "import os\n"
        "from lmcore import cli\n"
        "from lmcore.errors import StoppedError, StoreError\n"
        f"def fail(): {error}\n"
        "cli.main(fail)"
    )
    with start("-c", code) as process:
        assert process.communicate() == ("", said)
    assert process.returncode == status


@pytest.mark.parametrize("name", ["a,b.txt", 'quo"te', "[b]", "日本 語", "{x}"])
def test_a_path_is_taken_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    assert parse("--corpus.paths", name, f"--corpus.paths={name}").corpus.paths == [name, name]
    assert parse("--corpus.validation_paths", name).corpus.validation_paths == [name]
    assert parse("--corpus.paths", '["a", "b"]').corpus.paths == ["a", "b"]
