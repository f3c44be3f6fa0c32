"""What the benchmarks have in common: their size, where they work, environments of the peers, tables.

Every script takes ``--smoke``: the least work that runs all of its lines, with this Python and the packages that are
here. The figures mean nothing then; tests/test_benchmarks.py runs every section so.
"""

import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import TypeVar

IS_SMOKE = "--smoke" in sys.argv
if IS_SMOKE:
    sys.argv.remove("--smoke")

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
WORK = Path(os.environ.get("LM_BENCHMARKS", HERE / "work"))
_Value = TypeVar("_Value")


def sized(full: _Value, smoke: _Value) -> _Value:
    """The first value, or with ``--smoke`` the second."""
    return smoke if IS_SMOKE else full


def python_of(environment: str) -> Path:
    """The Python of an environment with the packages of <environment>.txt, made anew when that file has changed."""
    if IS_SMOKE:
        return Path(sys.executable)
    folder, wanted = WORK / environment, HERE / f"{environment}.txt"
    made = folder / "made"
    if not made.exists() or made.read_text() != wanted.read_text():
        venv.create(folder, with_pip=True, clear=True)
        pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--requirement", wanted], check=True)
        made.write_text(wanted.read_text())
    return folder / "bin" / "python"


def with_lmcore() -> dict[str, str]:
    """The environment of a process that imports lmcore from here, installed or not."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}


def table(title: str, head: str, rows: list[list[str]]) -> None:
    """As Markdown, the way it stands in docs/benchmarks.md."""
    names = head.split("|")
    print(f"\n### {title}\n\n| {' | '.join(names)} |\n| --- |{' ---: |' * (len(names) - 1)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)
