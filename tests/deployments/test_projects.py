"""Projects: a folder of TOML files that become deployments."""

from pathlib import Path

import pytest

from deployments.declaration import Schedule
from deployments.projects import projects
from lmcore.errors import ConfigError
from lmcore.settings.read import settings_of
from lmcore.settings.retraining import RetrainConfig

WEEKLY = """\
text = ["/data/ニュース"]
model_name = "news"
size = "small"

[schedule]
cron = "0 3 * * 1"
timezone = "Europe/Berlin"

[advanced.train]
learning_rate = 1e-4
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LM_PROJECTS", str(tmp_path))
    return tmp_path


def test_without_a_folder_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LM_PROJECTS", raising=False)
    assert projects() == []


def test_a_file_is_a_deployment_with_its_settings_and_its_schedule(folder: Path) -> None:
    (folder / "ニュース.toml").write_text(WEEKLY, encoding="utf-8-sig")
    [news] = projects()
    assert news.full_name == "retrain/ニュース"
    assert news.tags == ["lm", "project"]
    assert news.schedule == Schedule("project", "0 3 * * 1", "Europe/Berlin", active=True, when_served=True)
    advanced = news.parameters.pop("advanced")
    assert news.parameters == {"text": ["/data/ニュース"], "model_name": "news", "size": "small"}
    config = settings_of(RetrainConfig, "small", {}, advanced)
    assert (config.train.learning_rate, config.train.schedule, config.corpus.settle_seconds) == (1e-4, "wsd", 60)


def test_another_flow_and_what_may_be_left_out(folder: Path) -> None:
    (folder / "a.toml").write_text('text = ["/data"]')
    (folder / "b.toml").write_text('flow = "pretrain"\nlength = "3 epochs"\n[advanced.corpus.sources]\nweb = ["/w"]')
    a, b = projects()
    assert (a.full_name, a.parameters["model_name"], a.schedule) == ("retrain/a", "a", None)
    assert b.full_name == "pretrain/b"
    assert b.parameters == {"length": "3 epochs", "advanced": '[corpus]\nsources = {web = ["/w"]}'}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("texts = ['/data']\ntext = ['/data']", "texts (there is no such parameter). The fields are those of"),
        ("text = ['/data']\nsize = 'huge'", "size ('huge' is not one of"),
        ("text = ['/data']\nmin_new_bytes = 0", "min_new_bytes (0 is less than the minimum of 1)"),
        ("size = 'tiny'", "text: it is missing: name the files and folders to read"),
        ("flow = 'gc'\ntext = ['/data']", "flow: 'gc' is not one of prepare_data, pretrain, retrain"),
        ("text = ['/data']\n\n[advanced.train]\nmax_stepz = 5", "line 4: train.max_stepz: there is no such setting"),
        ("text = ['/data']\nadvanced = 'x'", "advanced: write its settings as tables, such as [advanced.train]"),
        ("text = ['/data']\n[schedule]\ncron = '0 3 * *'", 'schedule: cron: Invalid cron string: "0 3 * *"'),
        (
            "text = ['/data']\n[schedule]\ncron = '0 3 * * 1'\ntimezone = 'Berlin'",
            "schedule: timezone: Invalid timezone",
        ),
        ("text = ['/data']\n[schedule]\nevery = 'week'", "schedule: cron: Field required"),
        ("text = [", "Invalid value"),
    ],
)
def test_a_wrong_file_is_named_with_its_error(folder: Path, text: str, said: str) -> None:
    (folder / "wrong.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        projects()
    assert str(error.value).startswith(f"{folder / 'wrong.toml'}: ")
    assert said in str(error.value)


def test_every_wrong_file_is_named(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.toml").write_text("")
    with pytest.raises(ConfigError, match=r"a\.toml: .*; .*b\.toml: "):
        projects()


def test_the_name_of_a_deployment_that_ships_is_taken(folder: Path) -> None:
    (folder / "tiny.toml").write_text("text = ['/data']")
    with pytest.raises(ConfigError, match="there is a deployment retrain/tiny already: give the file another name"):
        projects()


def test_a_folder_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LM_PROJECTS", "/nowhere")
    with pytest.raises(ConfigError, match="LM_PROJECTS: /nowhere is not a folder"):
        projects()
