"""What the documents name is there: settings, commands, files, folders, links, licences."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from pydantic import BaseModel

from lmcore.settings.retraining import RetrainConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")] if path.name != "CHANGELOG.md")
each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)


def code_in(document: Path) -> str:
    """What a document shows as code within a line, a piece a line."""
    return "\n".join(re.findall(r"`([^`\n]+)`", document.read_text(encoding="utf-8")))


@each_document
def test_its_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (document.parent / target).exists(), target


@each_document
def test_its_settings_exist(document: Path) -> None:
    sections = {
        name: field.annotation.model_fields
        for name, field in RetrainConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    names = rf"(?m)^(?:--)?({'|'.join(sections)})\.([a-z_0-9]+)(?: .*)?$"
    for section, name in re.findall(names, code_in(document)):
        assert name in sections[section] or name in ("json", "py", "toml"), f"{section}.{name}"


@pytest.fixture(scope="module")
def commands() -> set[str]:
    help_of_all = subprocess.run([sys.executable, "-m", "deployments", "--help"], capture_output=True, text=True)
    return set(re.findall(r"(?m)^│ ([a-z][a-z-]+) ", help_of_all.stdout))


@each_document
def test_its_commands_exist(document: Path, commands: set[str]) -> None:
    text = code_in(document) + "\n" + "\n".join(re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL))
    named = set(re.findall(r"(?m)(?:^|\s)lm ([a-z][a-z-]+)", text))
    assert named <= commands


@each_document
def test_its_make_targets_exist(document: Path) -> None:
    targets = set(re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text()))
    text = code_in(document) + "\n" + "\n".join(re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL))
    assert set(re.findall(r"(?m)^make ([a-z-]+)", text)) <= targets


@each_document
def test_the_files_it_names_exist(document: Path) -> None:
    """A name with a folder is looked up from the root, from lmcore and beside the document."""
    for name in re.findall(r"(?m)^([a-z_]+(?:/[a-z_.]+)*/[a-z_]+\.(?:py|toml|yaml|txt|md))$", code_in(document)):
        assert any((base / name).exists() for base in (ROOT, ROOT / "lmcore", document.parent)), name


def test_the_design_says_what_every_folder_of_lmcore_promises() -> None:
    wings = {path.parent.name for path in (ROOT / "lmcore").glob("*/__init__.py")}
    named = re.findall(r"(?m)^\| `([a-z]+)/` \|", (ROOT / "docs" / "design.md").read_text())
    assert sorted(named) == sorted(wings)


def test_the_notice_names_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = {re.split(r"[<>=\[]", each)[0] for each in project["dependencies"]}
    assert needed == set(
        re.findall(r"(?m)^([a-z][\w.-]+) {3,}\S", (ROOT / "NOTICE").read_text().split("What their")[0])
    )


TRANSLATIONS = sorted(path for path in DOCUMENTS if path.name.endswith(".ja.md"))


@pytest.mark.parametrize("translation", TRANSLATIONS, ids=lambda path: path.name)
def test_a_translation_has_the_parts_of_its_document(translation: Path) -> None:
    document = translation.with_name(translation.name.replace(".ja.md", ".md"))
    parts = [
        re.findall(r"(?m)^(#+ |\| `|```|- )", path.read_text(encoding="utf-8")) for path in (document, translation)
    ]
    assert parts[0] == parts[1]
