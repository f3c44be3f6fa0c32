"""The end of a run says how good the model is, in words that are true, and commands that work."""

import json
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from lmcore.errors import StoreError
from lmcore.model.export import export
from lmcore.model.generate import write_texts
from lmcore.report.baselines import Baselines, compared
from lmcore.report.report import report
from lmcore.report.summary import summary, write_settings
from lmcore.runs.sample_prompts import with_prompts
from lmcore.settings.config import RunConfig, SampleConfig
from lmcore.settings.read import settings_of_flags as read
from tests.conftest import Trained


def baselines(zlib: float, ngram: float) -> Baselines:
    sizes = {"train_bytes": 1000, "text_bytes": 100}
    return Baselines(folder=Path("run"), dataset_id="d", zlib_bits_per_byte=zlib, ngram_bits_per_byte=ngram, **sizes)


@pytest.mark.parametrize(
    ("bits", "verdict"),
    [
        (1.2, "The model is better than both: 25 % fewer bits than the 5-gram model."),
        (1.595, "The model is as good as the 5-gram model, not better. Train it longer, or on more text."),
        (1.8, "The model is better than zlib, but worse than the 5-gram model: 12 % more bits. Train it longer"),
        (2.0, "The model is worse than the 5-gram model: 25 % more bits. Train it longer, or on more text."),
        (4.8, "The model is worse than the 5-gram model: 200 % more bits. Train it longer, or on more text."),
        (float("nan"), "The model is no better than these. Train it longer, or on more text."),
    ],
)
def test_the_verdict_is_what_the_figures_say(bits: float, verdict: str) -> None:
    text = compared(bits, baselines(zlib=2.0, ngram=1.6))
    assert "zlib (level 9) needs 2.000 bits per byte and a 5-gram model of the training text 1.600." in text
    assert verdict in text


def test_the_better_one_of_the_two_is_what_the_model_is_compared_with() -> None:
    assert "better than both: 50 % fewer bits than zlib." in compared(0.8, baselines(zlib=1.6, ngram=2.0))


@pytest.fixture(scope="module")
def end(trained: Trained) -> str:
    export(trained.training, trained.evaluation)
    page = report(trained.training, trained.evaluation, trained.blocks, SampleConfig(tokens=20), write_texts)
    return summary(trained.run.folder, page.samples, "1,000 bytes read", ["half of it was lost"])


def test_everything_is_there(trained: Trained, end: str) -> None:
    folder = trained.run.folder
    for line in (
        f"quality     {trained.evaluation.bits_per_byte:.3f} bits per byte of ",
        f"report      {folder}/report.md\n",
        f"model       {folder}/model\n",
        "text        1,000 bytes read\n",
        "warning     half of it was lost\n",
        "On the same text zlib (level 9) needs ",
        "what next\n",
    ):
        assert line in end, line


def commands(end: str) -> dict[str, list[str]]:
    rows = end.partition("what next\n")[2].splitlines()
    return {row[2:16].strip(): shlex.split(row[16:]) for row in rows}


def test_the_commands_are_those_that_a_person_may_want(trained: Trained, end: str) -> None:
    found = commands(end)
    assert list(found) == ["generate text", "train longer", "your own text"]
    *_, flag, steps = found["train longer"]
    assert (flag, steps) == ("--train.max-steps", str(4 * trained.training.last_step))
    *_, flag, prompt = found["generate text"]
    assert flag == "--prompt"
    assert prompt == with_prompts(SampleConfig(), trained.run).prompts[0]


@pytest.mark.parametrize(
    ("programs", "path", "expected"),
    [
        (["bin/python", "bin/lm"], "bin", ["lm"]),
        (["bin/python", "bin/lm"], "other", ["{}/bin/lm"]),
        (["bin/python", "bin/lm", "other/lm"], "other", ["{}/bin/lm"]),
        (["bin/python", "other/lm"], "other", ["{}/bin/python", "-m", "lmcore"]),
    ],
)
def test_the_commands_call_this_program_as_the_shell_finds_it(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    programs: list[str],
    path: str,
    expected: list[str],
) -> None:
    for name in programs:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin/python"))
    monkeypatch.setenv("PATH", str(tmp_path / path))
    found = commands(summary(trained.run.folder, [], "", []))
    words = [word.format(tmp_path) for word in expected]
    assert found["generate text"][: len(words) + 1] == [*words, "generate"]
    assert found["train longer"][: len(words) + 1] == [*words, "pretrain"]


@pytest.mark.parametrize("name", ["generate text", "train longer", "your own text"])
def test_the_commands_run(trained: Trained, end: str, corpus: Path, name: str) -> None:
    """As printed, but for the place of the text and, to be quick, the number of steps."""
    places = {"path/to/text": str(corpus), "80": "21"}
    words = [places.get(word, word) for word in commands(end)[name]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    if name == "generate text":
        assert result["samples"]
    else:
        assert result["step"] == (21 if name == "train longer" else trained.training.step)
        assert Path(result["model_dir"]).is_dir()


def test_the_settings_in_the_command_are_those_of_the_run(trained: Trained, end: str) -> None:
    words = commands(end)["train longer"]
    file = words[words.index("--config") + 1]
    kept = read(RunConfig, {"train": {"max_steps": "80"}}, file)
    expected = trained.run.config.model_copy(update={"run": "", "store": trained.run.store})
    assert kept == expected.model_copy(update={"train": expected.train.model_copy(update={"max_steps": 80})})


def test_a_page_in_a_browser_is_named_where_there_is_one(trained: Trained, end: str) -> None:
    assert "page        not kept: lm serve (in a checkout make serve) shows runs in a browser" in end
    assert "page        http://127.0.0.1:4200/runs/1" in summary(
        trained.run.folder, ["a"], "", [], "http://127.0.0.1:4200/runs/1"
    )


def test_settings_that_look_like_toml_survive(trained: Trained, tmp_path: Path) -> None:
    config = trained.run.config.model_copy(update={"sample": SampleConfig(prompts=['"\n[train]', "東京\\"])})
    run = type(trained.run)(**{**vars(trained.run), "folder": tmp_path / "runs" / "x", "config": config})
    run.folder.mkdir(parents=True)
    write_settings(run)
    assert tomllib.loads((run.folder / "settings.toml").read_text())["sample"]["prompts"] == ['"\n[train]', "東京\\"]


def test_a_folder_without_records_is_named(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((trained.run.folder / "config.json").read_bytes())
    with pytest.raises(StoreError, match=r"no training\.json"):
        summary(tmp_path, [], "", [])
