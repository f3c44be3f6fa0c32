"""What the READMEs tell people to type works, in a small form."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from flows.pretrain import Pretrained
from lmcore.settings.retraining import RetrainConfig
from tests.conftest import write_corpus
from tests.flags import parse

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.ja.md")
LM = [sys.executable, "-m", "deployments"]
"""The command lm, also where it is not installed."""
SMALL = (
    "--train.max_steps=3 --train.batch_size=2 --dataset.block_size=32 --model.layers=1 --model.width=16 "
    "--model.heads=2 --tokenizer.vocab_size=400"
)
TINY = f"deployments/configs/tiny.toml {SMALL}"


def blocks(readme: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / readme).read_text(), re.DOTALL)


def commands(readme: str) -> list[str]:
    return [line for block in blocks(readme, "bash") for line in block.splitlines() if line]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def run(command: list[str], home: Path, corpus: Path) -> str:
    """Standard output of a command in the repository, with a home and a store of its own."""
    # Nothing of the make that runs the tests: as its child, make would also print the folders it enters and leaves.
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MAKE", "MFLAGS"))
    }
    environment |= {"HOME": str(home), "LM_STORE": str(home / "store")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


def test_both_readmes_give_the_same_commands_and_code() -> None:
    assert commands("README.md") == commands("README.ja.md")
    code = [[re.sub(r'write\(".*?"\)', "write()", text) for text in blocks(name, "python")] for name in READMES]
    assert code[0] == code[1]


def settings_in(file: Path) -> list[str]:
    """Settings that a text gives a value, such as --train.nproc 8. (A switch has none.)"""
    return re.findall(r"`(--[a-z]+\.[a-z_]+ [^`]+)`", file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "setting",
    sorted({each for name in ("*.md", "docs/*.md") for file in ROOT.glob(name) for each in settings_in(file)}),
)
def test_a_setting_in_the_documents_is_understood(setting: str) -> None:
    flag, *value = shlex.split(setting)
    section, field = flag.removeprefix("--").split(".")
    config = parse(flag, *value, kind=RetrainConfig)
    assert field in getattr(config, section).model_dump()


@pytest.mark.flows
@pytest.mark.parametrize(
    "command", [c for c in commands("README.md") if c.startswith(("lm pretrain", "lm prepare", "lm retrain"))]
)
def test_a_flow_command_runs(command: str, home: Path, corpus: Path) -> None:
    words = shlex.split(command.replace("path/to/text", str(corpus)))
    out = run([*LM, *words[1:], *shlex.split(SMALL)], home, corpus)
    assert "dataset_id" in json.loads(out.splitlines()[-1])


@pytest.mark.flows
@pytest.mark.parametrize("command", [c for c in commands("README.md") if c.startswith("make demo")])
def test_make_demo_runs_and_ends_with_json(command: str, home: Path, corpus: Path) -> None:
    words = shlex.split(command.replace("path/to/text", str(corpus)))
    words += [f"BIN={Path(sys.executable).parent}", f"CONFIG={TINY}", "--assume-old=.venv/.installed"]
    if "CORPUS" not in command:
        words.append(f"CORPUS={corpus}")
    result = json.loads(run(words, home, corpus).splitlines()[-1])
    assert {"run_dir", "dataset_id", "model_dir", "report", "step", "valid_loss", "cached"} <= result.keys()
    assert Path(result["report"]).exists()


def test_every_target_the_readme_names_is_in_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name in READMES:
        assert set(re.findall(r"make ([a-z]+)", (ROOT / name).read_text())) <= targets


@pytest.fixture(scope="module")
def model_dir(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = write_corpus(tmp_path_factory.mktemp("text"))
    command = f"-m lmcore pretrain --config {TINY} --corpus.paths {corpus}"
    return Path(json.loads(run([sys.executable, *shlex.split(command)], home, corpus).splitlines()[-1])["model_dir"])


@pytest.mark.parametrize(
    "command", [c for c in commands("README.md") if c.startswith(("lm generate", "lm plot", "lm evaluate"))]
)
def test_a_command_about_a_run_runs(command: str, model_dir: Path, home: Path, tmp_path: Path) -> None:
    places = {"path/to/model": model_dir, "path/to/run": model_dir.parent, "path/to/other-run": model_dir.parent}
    places["path/to/text"] = write_corpus(tmp_path / "text", documents=20)
    words = [str(places.get(word, word)) for word in shlex.split(command)]
    words += {"plot": ["--out", str(tmp_path / "losses.png")], "generate": ["--tokens", "3"]}.get(words[1], [])
    assert json.loads(run([*LM, *words[1:]], home, tmp_path).splitlines()[-1])


@pytest.mark.parametrize("readme", READMES)
def test_the_python_snippets_run(
    readme: str, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import flows.pretrain
    from lmcore.tokenizer.tokenizer import Tokenizer

    def pretrain(config: object) -> Pretrained:
        """Stands for the flow, which the commands above have run for real."""
        return Pretrained.model_construct(model_dir=model_dir)

    monkeypatch.setattr(flows.pretrain, "pretrain", pretrain)
    monkeypatch.chdir(tmp_path)
    Path("train.txt").write_text("吾輩は猫である。名前はまだ無い。\n" * 100)
    tokenizer_folder = next((model_dir.parents[2] / "tokenizers").iterdir())
    variables: dict[str, object] = {"tokenizer": Tokenizer(tokenizer_folder)}
    for code in blocks(readme, "python"):
        exec(code.replace("path/to/model", str(model_dir)), variables)
    assert str(model_dir) in capsys.readouterr().out
    batch = next(iter(variables["loader"]))  # type: ignore[call-overload]
    assert batch["input_ids"].shape[1] == 128


def test_the_pictures_and_files_it_names_are_there() -> None:
    for name in READMES:
        for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text()):
            assert (ROOT / target).exists(), target
