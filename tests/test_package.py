"""The package as others install it: built, installed apart from the repository, and run in a folder of their own."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import write_corpus

ROOT = Path(__file__).parents[1]
SMALL = ["--train.max-steps=2", "--train.batch-size=2", "--dataset.block-size=32", "--tokenizer.vocab-size=400"]
SMALL += ["--model.layers=1", "--model.width=16", "--model.heads=2"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is made from it."""
    build = pytest.importorskip("build", reason="the package build is not installed")
    folder = tmp_path_factory.mktemp("dist")
    caches = shutil.ignore_patterns("*.egg-info", "__pycache__", ".*_cache")
    made_here = {".venv", ".git", "store", "build", "dist"}

    def ignored(place: str, names: list[str]) -> set[str]:
        return caches(place, names) | (made_here if Path(place) == ROOT else set())

    source = shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", build.__name__, "--no-isolation", "--outdir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def lm(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command lm in an environment of its own, which borrows the packages of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    packages = next(folder.glob("lib/python*/site-packages"))
    (packages / "borrowed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    [wheel] = built.glob("*.whl")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(folder / "bin" / "python")]
    command += ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return folder / "bin" / "lm"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A folder whose modules have the names of ours, and fail when they are imported."""
    folder = tmp_path / "elsewhere"
    (folder / "flows").mkdir(parents=True)
    for name in ("tasks.py", "flows/__init__.py", "lmcore.py", "deployments.py"):
        (folder / name).write_text(f"raise SystemExit('{name} of the current folder was imported')")
    return folder


def run(lm: Path, folder: Path, *words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "PYTHON", "LM_"))}
    environment = kept | {"PREFECT_HOME": str(folder / "prefect")} | variables
    command = [str(lm), *map(str, words)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=480)


@pytest.mark.flows
def test_a_preset_is_trained_beside_modules_of_the_same_names(lm: Path, elsewhere: Path) -> None:
    text = write_corpus(elsewhere / "text")
    done = run(lm, elsewhere, "pretrain", "--preset", "tiny", "--corpus.paths", text, *SMALL)
    assert done.returncode == 0, done.stderr
    assert Path(json.loads(done.stdout.splitlines()[-1])["model_dir"]).is_dir()


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["pretrian"], 2, 'Did you mean "pretrain"?'),
        (["pretrain", "--preset", "tny"], 1, "Did you mean tiny?"),
        (["prepare", "--corpus.paths", "nowhere"], 1, "corpus.paths: nowhere does not exist"),
        (["serve"], 1, "holds lmcore.py, tasks.py, flows, deployments.py, which Prefect would load"),
        (["retrain", "--corpus.paths", ".", "--gate.old_margin", "2"], 1, "--gate.old-margin: '2' is out of range"),
    ],
)
def test_an_error_is_one_line_and_starts_nothing(
    lm: Path, elsewhere: Path, words: list[str], status: int, said: str
) -> None:
    done = run(lm, elsewhere, *words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (status, "", 1), done.stderr
    assert said in done.stderr
    assert not (elsewhere / "prefect").exists()


def test_settings_are_checked_before_prefect_and_torch_are_imported(lm: Path, elsewhere: Path) -> None:
    for words in (["--help"], ["pretrain", "--help"], ["pretrain", "--preset", "tiny", "--corpus.paths", "nowhere"]):
        done = run(lm, elsewhere, *words, PYTHONPROFILEIMPORTTIME="1")
        imported = {
            line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time")
        }
        assert "lmcore.settings.config" in imported
        assert not {"prefect", "torch", "transformers", "flows"} & imported


def test_the_distributions_are_complete(built: Path) -> None:
    [source], [wheel] = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode == 0:
        assert set(tracked.stdout.splitlines()) - held <= {".gitignore"}
    packaged = set(zipfile.ZipFile(wheel).namelist())
    modules = {
        path.relative_to(ROOT).as_posix() for name in ("lmcore", "flows") for path in (ROOT / name).rglob("*.py")
    }
    assert modules | {"deployments/configs/tiny.toml", "deployments/prefect.yaml", "lmcore/py.typed"} <= packaged
    for licence in ("LICENSE", "NOTICE"):
        assert any(name.endswith(f"licenses/{licence}") for name in packaged)
    assert not any(name.startswith("tests/") for name in packaged)
