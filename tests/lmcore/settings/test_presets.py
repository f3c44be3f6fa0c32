import pytest

from lmcore.errors import ConfigError
from lmcore.settings.config import RunConfig
from lmcore.settings.read import merge, preset_names, settings_of, settings_of_flags


def test_a_preset_is_found_by_its_name_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert preset_names() == ["base", "small", "tiny"]
    assert settings_of_flags(RunConfig, {}, "tiny").corpus.paths == ["stdlib:"]


def test_a_file_wins_over_a_preset_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").write_text("[train]\nmax_steps = 3\n")
    assert settings_of_flags(RunConfig, {}, "tiny").train.max_steps == 3
    assert settings_of(RunConfig, "tiny", {}, "").corpus.paths == ["stdlib:"]


def test_a_misspelt_preset_gets_a_suggestion(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="Did you mean small"):
        settings_of_flags(RunConfig, {}, "smal")


def test_a_file_that_is_not_toml_is_named(tmp_path):
    (tmp_path / "mine.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match=r"mine\.toml"):
        settings_of_flags(RunConfig, {}, str(tmp_path / "mine.toml"))


def test_tables_are_merged_and_values_replaced():
    settings = {"train": {"max_steps": 3, "seed": 1}, "store": "a"}
    assert merge(settings, {"train": {"seed": 2}, "store": "b"}) == {"train": {"max_steps": 3, "seed": 2}, "store": "b"}
    assert settings == {"train": {"max_steps": 3, "seed": 1}, "store": "a"}


def test_other_paths_drop_what_described_the_old_ones():
    settings = {"corpus": {"paths": ["stdlib:"], "include": ["*.py"], "exclude": ["test"], "min_bytes": 3}}
    assert merge(settings, {"corpus": {"paths": ["a"]}}) == {"corpus": {"paths": ["a"], "min_bytes": 3}}
    changed = merge(settings, {"corpus": {"paths": ["a"], "include": ["*.txt"]}})
    assert changed["corpus"] == {"paths": ["a"], "include": ["*.txt"], "min_bytes": 3}
    assert merge(settings, {"corpus": {"seed": 1}})["corpus"]["include"] == ["*.py"]


def test_other_paths_drop_the_prompts_that_fitted_the_old_ones():
    settings = {"corpus": {"paths": ["stdlib:"]}, "sample": {"prompts": ["def"], "tokens": 5}}
    changed = {"corpus": {"paths": ["a"]}}
    assert merge(settings, changed)["sample"] == {"tokens": 5}
    assert merge(settings, changed | {"sample": {"prompts": ["学"]}})["sample"] == {"prompts": ["学"], "tokens": 5}
    assert merge(settings, {"corpus": {"seed": 1}})["sample"]["prompts"] == ["def"]
