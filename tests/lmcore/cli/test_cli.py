"""Flags over a file over defaults, and errors that name what is wrong and where it was set."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclopts import CycloptsError
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from lmcore.cli.flags import COMMON, check
from lmcore.cli.outcome import print_json
from lmcore.errors import ConfigError, LMError
from lmcore.settings.config import TEXT_PATTERNS, CorpusConfig, RunConfig
from lmcore.settings.read import settings_of_flags as read_settings
from lmcore.settings.retraining import RetrainConfig
from tests.conftest import start
from tests.flags import parse

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


def test_flags_go_before_the_file_and_the_file_before_defaults(file: Path) -> None:
    config = parse("--config", file, "--train.batch_size", 3, "--fresh", "--store", "/x")
    assert (config.train.max_steps, config.train.batch_size, config.fresh) == (7, 3, True)
    assert config.store == Path("/x")
    assert parse("--train.max-steps=9", f"--config={file}").train.max_steps == 9
    assert parse("--train.max_steps", 9, "--train.max-steps", 10).train.max_steps == 10, "the last one holds"
    assert parse() == RunConfig()


def test_a_preset_is_named_under_either_flag() -> None:
    assert parse("--preset", "tiny") == parse("--config", "tiny")
    assert parse("--config", "tiny").corpus.paths == ["stdlib:"]


def test_switches_have_a_form_for_no() -> None:
    assert parse("--no-fresh").fresh is False
    assert parse("--no-train.tf32").train.tf32 is False
    assert parse("--train.tf32=false").train.tf32 is False


def test_other_paths_put_back_what_described_the_files_corpus(file: Path) -> None:
    assert parse("--config", file).corpus.include == ["*.py"]
    corpus = parse("--config", file, "--corpus.paths", "a", "--corpus.paths", "b").corpus
    assert (corpus.paths, corpus.include, corpus.exclude, corpus.document) == (["a", "b"], TEXT_PATTERNS, [], "auto")
    corpus = parse("--config", file, "--corpus.paths=a", "--corpus.include", "*.md").corpus
    assert corpus.include == ["*.md"]


def test_a_list_takes_several_words_as_a_shell_gives_them(file: Path) -> None:
    config = parse("--corpus.paths", "a.txt", "b.txt", "c,d.txt", "--run", "r")
    assert (config.corpus.paths, config.run) == (["a.txt", "b.txt", "c,d.txt"], "r")
    assert parse("--config", file, "--no-corpus.exclude").corpus.exclude == []


@pytest.mark.parametrize(
    "words",
    [
        ["--dataset.weights", "web=0.7,wiki=0.3"],
        ["--dataset.weights", "web=0.7", "--dataset.weights=wiki=0.3"],
    ],
)
def test_shares_of_sources(words: list[str]) -> None:
    assert parse(*words).dataset.weights == {"web": 0.7, "wiki": 0.3}


@pytest.mark.parametrize(
    ("words", "sources"),
    [
        (["--corpus.sources", "web=a/,wiki=b/"], {"web": ["a/"], "wiki": ["b/"]}),
        (["--corpus.sources", "web=a,b.txt"], {"web": ["a,b.txt"]}),
        (["--corpus.sources", "web=a,b", "--corpus.sources=web=c"], {"web": ["a,b", "c"]}),
        (["--corpus.sources", "my_web.x=a=b"], {"my_web.x": ["a=b"]}),
    ],
)
def test_sources_and_their_paths(words: list[str], sources: dict[str, list[str]]) -> None:
    assert parse(*words).corpus.sources == sources


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.max_steps", "many"], "--train.max-steps: 'many' is not a whole number"),
        (["--train.max_steps", "-3"], "--train.max-steps: '-3' is out of range: it must be at least 0"),
        (["--gate.old_margin", "2"], "--gate.old-margin: '2' is out of range: it must be at most 1.0"),
        (
            ["--model.width", "10"],
            "model: width 10 is not a multiple of heads 6 (set by --model.width)",
        ),
        (["--config", "/nowhere.toml"], "/nowhere.toml is neither a file in "),
        (["--config", "tny"], "Did you mean tiny?"),
        (["--dataset.weights", "web=much"], "--dataset.weights.web: 'much' is not a number"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_it(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(*arguments, kind=RetrainConfig)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.max-step", "3"], "Did you mean --train.max-steps?"),
        (["--train.optimizer", "adm"], 'Did you mean "adam"?'),
        (["--train.max-steps"], "--train.max-steps requires an argument"),
        (["--sample.prompts", "--run", "r"], "--sample.prompts requires"),
        (["--train.tf32=perhaps"], "perhaps"),
        (["--dataset.weights", "web"], "'web' is not NAME=VALUE"),
    ],
)
def test_a_word_that_is_not_understood_is_named(arguments: list[str], message: str) -> None:
    with pytest.raises(CycloptsError) as error:
        parse(*arguments)
    assert message in str(error.value)


def test_a_warm_up_that_is_not_understood_gets_examples_and_no_pattern() -> None:
    with pytest.raises(ConfigError) as error:
        parse("--train.warmup", "5percent")
    assert str(error.value).startswith("--train.warmup: '5percent' is not understood. ")
    assert '"100 steps", "2M tokens", "0.1 epochs" or "1 %"' in str(error.value)
    assert "^" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[train]\nlr = 1", r"run.toml, line 2: train.lr: there is no such setting"),
        ("[train]\nmax_step = 1", r"run.toml, line 2: .* Did you mean train.max_steps\?"),
        ("[train", "run.toml"),
        ("train = 3", "run.toml, line 1: train: 3 is not a table of settings"),
        (
            "\n[train]\nseed = 1\nmax_steps = 'many'\n",
            "run.toml, line 4: train.max_steps: 'many' is not a whole number",
        ),
        ("train.max_steps = 1.5\n", "run.toml, line 1: train.max_steps: 1.5 is not a whole number"),
        ("train = {max_steps = -1}", "run.toml, line 1: train.max_steps: -1 is out of range"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(file: Path, content: str, message: str) -> None:
    file.write_text(content)
    for read in (lambda: parse("--config", file), lambda: read_settings(RunConfig, {}, str(file))):
        with pytest.raises(ConfigError, match=message):
            read()


def test_the_file_is_not_blamed_for_a_flag(file: Path) -> None:
    with pytest.raises(ConfigError) as error:
        parse("--config", file, "--train.max_steps", "many")
    assert str(error.value) == "--train.max-steps: 'many' is not a whole number"


def test_a_contradiction_names_both_of_its_ends(file: Path) -> None:
    file.write_text("[model]\nheads = 4\n")
    with pytest.raises(ConfigError) as error:
        parse("--config", file, "--model.width", 10)
    assert str(error.value).endswith(f"heads 4 (set by --model.width and {file}, line 2)")


def test_a_section_that_is_none_is_named_even_where_a_flag_gives_its_paths(file: Path) -> None:
    file.write_text("corpus = 1")
    with pytest.raises(ConfigError, match=r"run.toml, line 1: corpus: "):
        parse("--config", file, "--corpus.paths", "a")


@pytest.mark.parametrize("name", ["a,b.txt", 'quo"te', "[b]", "[abc]*", "日本 語", "{x}", '["a"]'])
def test_a_path_is_taken_as_it_stands(name: str) -> None:
    corpus = parse("--corpus.paths", name, f"--corpus.paths={name}", "--corpus.exclude", name).corpus
    assert (corpus.paths, corpus.exclude) == ([name, name], [name])
    assert parse("--corpus.validation_paths", name).corpus.validation_paths == [name]


def test_a_byte_order_mark_is_no_setting(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + FILE.encode())
    assert parse("--config", file).train.max_steps == 7


def leaves(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict) and prefix + name not in ("corpus.sources", "dataset.weights"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def flags(name: str, value: Any) -> list[str]:
    """The words that give a setting this value."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, list):
        return [f"--{name}={each}" for each in value] or [f"--no-{name}"]
    if isinstance(value, dict):
        values = {key: inner if isinstance(inner, list) else [inner] for key, inner in value.items()}
        return [f"--{name}={key}={each}" for key, inner in values.items() for each in inner]
    return [f"--{name}={value}"]


def test_every_setting_is_a_flag_and_a_line_of_toml(tmp_path: Path) -> None:
    config = RunConfig(corpus=CorpusConfig(paths=["a", "b c"], exclude=["x"], validation_paths=["日本"]), run="r")
    content = dict(leaves(config.model_dump(mode="json")))
    assert len(content) > 50
    assert parse(*(word for name, value in content.items() for word in flags(name, value))) == config
    lines = {name: value for name, value in content.items() if value != {}}
    (tmp_path / "all.toml").write_text(
        "\n".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in lines.items())
    )
    assert (
        parse("--config", tmp_path / "all.toml") == read_settings(RunConfig, {}, str(tmp_path / "all.toml")) == config
    )


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=9)
names = st.text("abcXYZ019_日", min_size=1, max_size=6).filter(lambda name: name != "corpus")
changes = st.fixed_dictionaries(
    {},
    optional={
        "corpus": st.fixed_dictionaries(
            {},
            optional={
                "paths": st.lists(texts, max_size=3),
                "exclude": st.lists(texts, max_size=3),
                "sources": st.dictionaries(names, st.lists(texts, min_size=1, max_size=3), max_size=3),
                "document": st.sampled_from(["auto", "line", "paragraph", "file"]),
                "settle_seconds": st.floats(0, 86_400),
                "deduplicate": st.booleans(),
            },
        ),
        "dataset": st.fixed_dictionaries(
            {}, optional={"weights": st.dictionaries(names, st.floats(0.001, 1e3), max_size=3)}
        ),
        "train": st.fixed_dictionaries(
            {}, optional={"max_steps": st.integers(0, 10**9), "seed": st.integers(0, 2**31 - 1), "init_from": texts}
        ),
        "sample": st.fixed_dictionaries({}, optional={"prompts": st.lists(texts | st.just(""), max_size=3)}),
        "store": texts.map(lambda text: f"/{text}"),
        "fresh": st.booleans(),
    },
)


@settings(max_examples=40)
@given(changes)
def test_any_settings_come_back_from_their_flags(content: dict[str, Any]) -> None:
    try:
        config = RunConfig.model_validate(content)
    except ValidationError:
        return
    assert parse(*(word for name, value in leaves(content) for word in flags(name, value))) == config


def test_a_setting_that_help_shows_is_there() -> None:
    assert set(COMMON) <= dict(leaves(RetrainConfig().model_dump(mode="json"))).keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": {"paths": ["nowhere"]}}, "corpus.paths: nowhere does not exist"),
        ({"corpus": {"sources": {"web": ["nowhere*.txt"]}}}, "corpus.sources.web: nowhere"),
        (
            {"corpus": {"validation_paths": ["./nowhere"], "paths": ["."]}},
            "corpus.validation_paths: ./nowhere does not",
        ),
        ({}, "corpus.paths is empty"),
        ({"corpus": {"paths": ["."], "include": ["*.md"]}}, r"corpus.paths: no file in \. matches corpus.include"),
        ({"corpus": {"paths": ["."]}, "dataset": {"weights": {"web": 1}}}, "dataset.weights must"),
        (
            {"corpus": {"paths": ["."]}, "tokenizer": {"source": "no/where.model"}},
            "tokenizer.source: no/where.model does",
        ),
        ({"corpus": {"paths": ["."]}, "train": {"init_from": "./nowhere"}}, "train.init_from: ./nowhere does not"),
        ({"corpus": {"paths": ["."]}, "store": "a-file/store"}, "a-file is a file: give another folder with --store"),
        (
            {"corpus": {"paths": ["."]}, "train": {"max_steps": 5, "warmup": "9 steps"}},
            "but the run has 5: train longer",
        ),
    ],
)
def test_what_cannot_work_is_known_before_anything_starts(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a-file").touch()
    Path("a.txt").write_text("text")
    with pytest.raises(LMError, match=message):
        check(RunConfig.model_validate(changes))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "a.txt"]


def test_names_that_may_be_elsewhere_are_no_paths(tmp_path: Path) -> None:
    settings = {"corpus": {"paths": [str(tmp_path), "s3://bucket/texts"]}, "tokenizer": {"source": "user/name"}}
    check(RunConfig.model_validate(settings | {"train": {"init_from": "lm"}, "store": tmp_path / "a" / "b"}))


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
        "from lmcore.cli.outcome import main\n"
        "from lmcore.errors import StoppedError, StoreError\n"
        f"def fail(): {error}\n"
        "main(fail)"
    )
    with start("-c", code) as process:
        assert process.communicate() == ("", said)
    assert process.returncode == status


@pytest.mark.parametrize("encoding", ["cp932", "ascii", "utf-8"])
def test_json_is_whole_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    value = {"text": "日本 é 😀 髙"}
    print_json(value)
    assert json.loads(written.getvalue().decode(encoding)) == value
    assert (b"\\u" in written.getvalue()) == (encoding != "utf-8")


@pytest.mark.parametrize("words", [["--corpus.paths=\udc8c"], ["--sample.prompts", "\udcff"], ["--store", "\udcff"]])
def test_a_flag_that_is_not_utf8_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="half of a character: an emoji was cut in two, or the bytes are not UTF-8"):
        parse(*words)


def test_json_is_short_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    result = {"run_dir": "/a" * 50, "samples": [{"prompt": "", "text": "学" * 50}], "account": "a", "step": 1}
    print_json(result)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_json(result)
    whole, short = map(json.loads, capsys.readouterr().out.splitlines())
    assert whole == result
    assert short == result | {"samples": [{"prompt": "", "text": "学" * 40 + "..."}]}


@pytest.mark.parametrize("module", ["lmcore", "deployments"])
def test_a_setting_before_the_command_is_told_where_it_belongs(module: str) -> None:
    with start("-m", module, "--preset", "tiny", "pretrain") as process:
        said = "error: --preset: settings follow the command, as in pretrain --preset tiny\n"
        assert process.communicate() == ("", said)
    assert process.returncode == 2


@pytest.mark.parametrize("module", ["lmcore", "deployments"])
def test_prepare_has_one_name_and_answers_to_the_earlier_one(module: str) -> None:
    with start("-m", module, "--help") as process:
        text, _ = process.communicate()
    assert "│ prepare " in text
    assert "tokenize" not in text
    for name in ("prepare", "tokenize"):
        with start("-m", module, name, "--corpus.paths", "nowhere") as process:
            _, errors = process.communicate()
        assert errors.startswith("error: corpus.paths: nowhere does not exist"), errors


def test_json_stays_on_one_line_for_every_reader(capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(map(chr, range(0x2100))) + "日本語"
    print_json({"samples": [text]})
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {"samples": [text]}
