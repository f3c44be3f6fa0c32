"""Settings from presets, files, the fields of a form and a TOML text; and settings written as such a text."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as draw
from hypothesis import strategies as st

from lmcore.errors import ConfigError
from lmcore.settings.config import RunConfig
from lmcore.settings.read import (
    CUSTOM,
    given,
    merge,
    preset_names,
    settings_of,
    settings_of_flags,
    settings_text,
    toml_text,
    without_effect,
)
from lmcore.settings.retraining import RetrainConfig
from lmcore.settings.training import TrainConfig
from lmcore.training.schedule import length_settings

_TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | _TEXTS,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
_TABLES = st.recursive(
    st.dictionaries(_TEXTS, _VALUES, max_size=4),
    lambda inner: st.dictionaries(_TEXTS, inner | _VALUES, max_size=4),
    max_leaves=8,
)


@draw(_TABLES)
def test_what_is_written_as_toml_is_read_as_the_same(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_text(table)) == table


@draw(
    paths=st.lists(_TEXTS, max_size=3),
    sources=st.dictionaries(_TEXTS.filter(lambda name: name != "corpus"), st.lists(_TEXTS, min_size=1), max_size=2),
    rate=st.floats(1e-6, 10, exclude_min=True),
    prompts=st.lists(_TEXTS, max_size=2),
    fresh=st.booleans(),
)
def test_settings_survive_the_form(
    paths: list[str], sources: dict[str, list[str]], rate: float, prompts: list[str], fresh: bool
) -> None:
    corpus = {"paths": paths, "sources": sources, "exclude_documents": paths}
    train = {"learning_rate": rate, "min_learning_rate": rate / 2}
    config = RunConfig.model_validate(
        {"corpus": corpus, "train": train, "sample": {"prompts": prompts}, "fresh": fresh, "store": "a store"}
    )
    assert settings_of(RunConfig, CUSTOM, {}, settings_text(config)) == config


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_survives_the_form(name: str) -> None:
    config = settings_of_flags(RetrainConfig, {}, name)
    assert settings_of(RetrainConfig, CUSTOM, {}, settings_text(config)) == config
    assert settings_of(RetrainConfig, name, {}, "") == config


def test_the_text_wins_over_the_fields_and_these_over_the_preset() -> None:
    fields = {"train": {"max_steps": 5}, "corpus": {"document": "line"}}
    assert settings_of(RunConfig, "tiny", fields, "").train.max_steps == 5
    config = settings_of(RunConfig, "tiny", fields, "[train]\nmax_steps = 6")
    assert config.train.max_steps == 6
    assert config.train.batch_size == settings_of(RunConfig, "tiny", {}, "").train.batch_size
    assert without_effect(fields, "", config) == ["train.max_steps of the form: advanced sets it, or what it describes"]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        ("", (700, 0, 1.0)),
        ("20 steps", (20, 0, 1.0)),
        ("2.5M tokens", (0, 2_500_000, 1.0)),
        ("0.5 epochs", (0, 0, 0.5)),
        ("1_000steps", (1000, 0, 1.0)),
    ],
)
def test_a_length_takes_the_place_of_the_presets(length: str, expected: tuple[int, int, float]) -> None:
    train = settings_of(RunConfig, "tiny", {"train": length_settings(length)}, "[train]\nbatch_size = 8").train
    if not length:
        expected = (settings_of(RunConfig, "tiny", {}, "").train.max_steps, 0, 1.0)
    assert (train.max_steps, train.max_tokens, train.epochs) == expected


@pytest.mark.parametrize("length", ["0 steps", "20 %", "soon", "5"])
def test_what_is_no_length_is_refused(length: str) -> None:
    with pytest.raises(ConfigError, match="is not a length: write it like '700 steps'"):
        length_settings(length)


def test_what_the_advanced_text_sets_counts_although_the_preset_has_another_length() -> None:
    assert settings_of(RunConfig, "tiny", {}, "[train]\nepochs = 2").train.max_steps == 0


def test_a_field_counts_as_given_where_something_was_entered() -> None:
    fields = {
        "corpus": {"paths": [], "document": "auto"},
        "retraining": {"model_name": "lm", "min_new_bytes": 1, "budget_minutes": 0},
        "store": "",
        "fresh": False,
    }
    assert given(RetrainConfig, fields) == {"retraining": {"min_new_bytes": 1}}
    assert given(RetrainConfig, {"store": "s", "fresh": True}) == {"store": "s", "fresh": True}


@pytest.mark.parametrize(
    ("advanced", "said"),
    [
        ("[train]\nmax_steps = \n", "advanced: Invalid value (at line 2, column 13)"),
        ('[train]\nwarmup = "', "advanced: Unterminated string (at line 2, the last)"),
        ("[train]\nmax_stepz = 5", "advanced, line 2: train.max_stepz: there is no such setting. Did you mean"),
        ("# mine\nvocab_size = 5", "line 2: vocab_size: there is no such setting. Did you mean tokenizer.vocab_size?"),
        ("[corpus]\npaths = [\n 'a',\n 5,\n]\n", "advanced, line 2: corpus.paths: 5 is not text"),
        ("train.max_steps = 'many'", "line 1: train.max_steps: 'many' is not a whole number"),
        ("train = 5", "line 1: train: 5 is not a table of settings"),
        ("fresh = true\n[train]\nlearning_rate = 1e-6", "(set by advanced, line 3)"),
        ("[nonsense]\na = 1", "line 1: nonsense: there is no such setting"),
    ],
)
def test_an_error_in_the_text_names_its_line(advanced: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(RunConfig, CUSTOM, {}, advanced)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("advanced", "said"),
    [
        ("minimum_documents = 5", "minimum_documents was removed: set minimum_old_documents and minimum_new_documents"),
        ("old_margin_bits_per_byte = 0.1", "old_margin_bits_per_byte was removed: set old_margin"),
        ("every_source = true", "every_source was removed: leave it out"),
        ("resamples = 500", "resamples was removed: leave it out"),
        ("xyzzy = 1", "line 2: gate.xyzzy: there is no such setting; `lm retrain --help-all` lists all"),
    ],
)
def test_a_gate_setting_of_an_earlier_version_says_what_to_do(advanced: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings_of(RetrainConfig, CUSTOM, {}, f"[gate]\n{advanced}")
    assert said in str(error.value)
    assert "advanced, line 2" in str(error.value)


def test_an_error_that_is_not_in_the_text_names_no_line() -> None:
    with pytest.raises(ConfigError, match=r"^run: '../x' is not understood"):
        settings_of(RunConfig, CUSTOM, {"run": "../x"}, "[train]\nmax_steps = 5")


def test_settings_of_sections_that_a_flow_does_not_look_at_are_named() -> None:
    advanced = "fresh = true\n[train]\nmax_steps = 5\n[tokenizer]\nvocab_size = 400"
    config = settings_of(RunConfig, CUSTOM, {}, advanced)
    assert without_effect({}, advanced, config, unused=("train", "fresh")) == ["fresh, train.max_steps"]


def test_the_text_of_settings_leaves_the_defaults_out() -> None:
    config = RunConfig(train=TrainConfig(max_steps=5), store=Path("s"))
    assert settings_text(config) == 'store = "s"\n[train]\nmax_steps = 5'


def test_a_preset_is_found_by_its_name_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert preset_names() == ["base", "small", "tiny"]
    assert settings_of_flags(RunConfig, {}, "tiny").corpus.paths == ["stdlib:"]


def test_a_file_wins_over_a_preset_of_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("[train]\nmax_steps = 3\n")
    assert settings_of_flags(RunConfig, {}, "tiny").train.max_steps == 3
    assert settings_of(RunConfig, "tiny", {}, "").corpus.paths == ["stdlib:"]


def test_a_misspelt_preset_gets_a_suggestion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean small"):
        settings_of_flags(RunConfig, {}, "smal")


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match=r"mine\.toml"):
        settings_of_flags(RunConfig, {}, str(tmp_path / "mine.toml"))


def test_tables_are_merged_and_values_replaced() -> None:
    settings = {"train": {"max_steps": 3, "seed": 1}, "store": "a"}
    assert merge(settings, {"train": {"seed": 2}, "store": "b"}) == {"train": {"max_steps": 3, "seed": 2}, "store": "b"}
    assert settings == {"train": {"max_steps": 3, "seed": 1}, "store": "a"}


def test_other_paths_drop_what_described_the_old_ones() -> None:
    settings = {"corpus": {"paths": ["stdlib:"], "include": ["*.py"], "exclude": ["test"], "min_bytes": 3}}
    assert merge(settings, {"corpus": {"paths": ["a"]}}) == {"corpus": {"paths": ["a"], "min_bytes": 3}}
    changed = merge(settings, {"corpus": {"paths": ["a"], "include": ["*.txt"]}})
    assert changed["corpus"] == {"paths": ["a"], "include": ["*.txt"], "min_bytes": 3}
    assert merge(settings, {"corpus": {"seed": 1}})["corpus"]["include"] == ["*.py"]


def test_other_paths_drop_the_prompts_that_fitted_the_old_ones() -> None:
    settings = {"corpus": {"paths": ["stdlib:"]}, "sample": {"prompts": ["def"], "tokens": 5}}
    changed = {"corpus": {"paths": ["a"]}}
    assert merge(settings, changed)["sample"] == {"tokens": 5}
    assert merge(settings, changed | {"sample": {"prompts": ["学"]}})["sample"] == {"prompts": ["学"], "tokens": 5}
    assert merge(settings, {"corpus": {"seed": 1}})["sample"]["prompts"] == ["def"]
