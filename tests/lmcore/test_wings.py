"""The rules of lmcore's wings that import-linter cannot hold. Its own contracts stand in pyproject.toml."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

LMCORE = Path(__file__).parents[2] / "lmcore"
WINGS = sorted(path.parent.name for path in LMCORE.glob("*/__init__.py"))
FILES = sorted(path.relative_to(LMCORE.parent).as_posix() for path in LMCORE.rglob("*.py"))


@pytest.mark.parametrize("wing", [name for name in WINGS if name != "cli"])
def test_a_wing_says_what_it_promises_and_its_doors_exist(wing: str) -> None:
    said = import_module(f"lmcore.{wing}").__doc__
    assert said is not None
    for part in ("Promises: ", "Imports: ", "Doors: "):
        assert f"\n{part}" in said
    doors = re.findall(r"``(\w+)\.(\w+)``", said[said.index("Doors: ") :])
    assert doors
    for module, name in doors:
        if name != "py":
            assert callable(getattr(import_module(f"lmcore.{wing}.{module}"), name)), name


@pytest.mark.parametrize("file", FILES)
def test_no_file_imports_the_private_names_of_another(file: str) -> None:
    tree = ast.parse((LMCORE.parent / file).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    taken = [alias.name for node in imports for alias in node.names if (node.module or "").startswith("lmcore")]
    assert not [name for name in taken if name.startswith("_")]
