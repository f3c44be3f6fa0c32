"""Every settings file that ships is valid, and says what the design promises."""

import sysconfig
from pathlib import Path

import pytest

from lmcore.corpus.scan import scan
from lmcore.settings.config import RunConfig
from lmcore.settings.read import PRESETS
from lmcore.settings.read import settings_of_flags as read

FILES = sorted(PRESETS.glob("*.toml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_config_is_valid(path: Path) -> None:
    read(RunConfig, {}, str(path))


def test_the_usual_sizes_ship() -> None:
    assert [path.stem for path in FILES] == ["base", "small", "tiny"]


def test_tiny_reads_the_standard_library_without_packages_and_tests() -> None:
    files = [Path(file.path) for file in scan(read(RunConfig, {}, str(PRESETS / "tiny.toml")).corpus).files]
    library = Path(sysconfig.get_path("stdlib"))
    assert len(files) > 300
    for file in files:
        parts = file.relative_to(library).parts
        assert file.suffix == ".py"
        assert not {"site-packages", "test", "tests"} & set(parts)
