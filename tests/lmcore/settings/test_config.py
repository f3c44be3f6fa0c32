"""One definition of every setting serves Python, TOML, flags and forms."""

from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from lmcore.settings.config import CorpusConfig, RunConfig, TrainConfig
from lmcore.settings.section import fingerprint, result_fields


def fields(model: type[BaseModel], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, info in model.model_fields.items():
        found.append((prefix + name, info))
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            found += fields(info.annotation, f"{prefix}{name}.")
    return found


@pytest.mark.parametrize(("name", "info"), fields(RunConfig))
def test_every_setting_is_explained(name: str, info: object) -> None:
    assert len(info.description) > 10, name  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "content",
    [
        {"nonsense": 1},
        {"train": {"lr": 1}},
        {"train": {"max_steps": "many"}},
        {"train": {"max_steps": -1}},
        {"train": {"learning_rate": 1e-5}},
        {"model": {"width": 10, "heads": 3}},
        {"model": {"architecture": "llama", "width": 9, "heads": 3}},
        {"model": {"kv_heads": 2}},
        {"model": {"architecture": "llama", "heads": 6, "kv_heads": 4}},
        {"corpus": {"validation_fraction": 0}},
        {"corpus": {"sources": {"": ["x"]}}},
        {"corpus": {"sources": {"web": []}}},
        {"corpus": {"paths": ["x"], "sources": {"corpus": ["y"]}}},
        {"corpus": {"min_bytes": 2, "max_bytes": 1}},
        {"dataset": {"weights": {"corpus": float("inf")}}},
        {"dataset": {"weights": {"corpus": float("nan")}}},
        {"run": "../other"},
        {"run": ".hidden"},
    ],
)
def test_what_makes_no_sense_is_refused(content: object) -> None:
    with pytest.raises(ValidationError):
        RunConfig.model_validate(content)


def test_a_removed_setting_is_passed_over_where_it_changed_nothing() -> None:
    assert CorpusConfig.model_validate({"filter": ""}) == CorpusConfig()
    with pytest.raises(ValidationError, match="filter was removed: leave it out"):
        CorpusConfig.model_validate({"filter": "json.loads"})


def test_only_result_fields_name_a_run() -> None:
    named = result_fields(RunConfig())
    assert not {"store", "run", "fresh", "when_locked"} & named.keys()
    assert named["sample"] == {}
    views = {"device", "log_every", "validate_every", "checkpoint_every", "keep_checkpoints", "validation_tokens"}
    assert not views & named["train"].keys()
    assert {"seed", "learning_rate", "max_steps", "precision"} <= named["train"].keys()


def test_a_fingerprint_is_of_values_not_of_key_order() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    assert len({fingerprint(value) for value in (1, "1", [1], {"1": 1}, None, True)}) == 6


def test_the_store_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LM_STORE", raising=False)
    assert RunConfig().store == Path("store")
    monkeypatch.setenv("LM_STORE", "/elsewhere")
    assert RunConfig().store == Path("/elsewhere")


@pytest.mark.parametrize(
    ("corpus", "label"),
    [
        ({"paths": ["stdlib:"]}, "stdlib"),
        ({"paths": ["texts/wiki/"]}, "wiki"),
        ({"paths": ["texts/wiki/**/*.jsonl"]}, "wiki"),
        ({"paths": ["s3://bucket/texts/?region=eu", "a.txt"]}, "texts and a.txt"),
        ({"paths": ["a", "b"], "sources": {"web": ["x"]}}, "a and 2 more"),
        ({"sources": {"wiki": ["x"], "web": ["y"]}}, "web and wiki"),
        ({}, "no text"),
    ],
)
def test_a_corpus_is_called_by_its_last_names(corpus: dict[str, object], label: str) -> None:
    assert CorpusConfig.model_validate(corpus).label == label


def test_a_folder_that_is_here_is_called_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CorpusConfig(paths=["."]).label == tmp_path.name


def test_a_model_is_called_by_its_shape_or_its_beginning() -> None:
    assert RunConfig().model_label == "gpt2 6x384"
    assert RunConfig(train=TrainConfig(init_from="models/mine")).model_label == "from mine"
