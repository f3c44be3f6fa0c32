"""One answer to where something is: by path, by name or by id, and never outside of LM_DATA_ROOTS."""

from pathlib import Path

import pytest

from lmcore.errors import ConfigError, RegistryError, StoreError
from lmcore.registry.registry import adding, promote
from lmcore.registry.versions import Kind, find
from lmcore.store.allowed_paths import VARIABLE
from lmcore.store.artifacts import write_artifact


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store beside the current folder, with a run, a dataset and the champion ja/v0001."""
    for folder in ("store/runs/one", "store/datasets/0123", "here/export", "outside/deep"):
        (tmp_path / folder).mkdir(parents=True)
    with adding(tmp_path / "store", "ja") as version, write_artifact(version.folder, dict) as folder:
        (folder / "receipt.json").write_text('{"format_version": 1, "created": "2026-01-01T00:00:00+00:00"}')
    promote(tmp_path / "store", "ja", "v0001", expected=None, reason="", force=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "store"


@pytest.mark.parametrize(
    ("name", "kinds", "found"),
    [
        ("export", ("folder", "run"), "here/export"),
        ("../store/runs/one", ("folder", "run"), "here/../store/runs/one"),
        ("one", ("folder", "run", "version"), "store/runs/one"),
        ("0123", ("dataset", "folder"), "store/datasets/0123"),
        ("ja", ("folder", "run", "version"), "store/models/ja/v0001"),
        ("ja/v0001", ("folder", "run", "version"), "store/models/ja/v0001"),
    ],
)
def test_each_kind_is_found_by_its_name(store: Path, name: str, kinds: tuple[Kind, ...], found: str) -> None:
    assert find(store, name, *kinds) == store.parent / found


def test_a_name_of_another_kind_is_not_found(store: Path) -> None:
    with pytest.raises(StoreError, match=f"^there is no dataset or folder named one in {store} or {Path.cwd()}$"):
        find(store, "one", "dataset", "folder")
    with pytest.raises(RegistryError, match=r"no version v0002 .*there are: v0001"):
        find(store, "ja/v0002", "folder", "version")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("../outside", "folder"), ("link", "folder"), ("linked", "run"), ("linked", "dataset"), ("linked", "version")],
)
def test_what_leads_out_of_the_roots_is_refused(
    store: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: Kind
) -> None:
    outside = store.parent / "outside"
    for link in ("here/link", "store/runs/linked", "store/datasets/linked", "store/models/linked"):
        (store.parent / link).symlink_to(outside)
    (store / "runs/one/model").symlink_to(outside)
    monkeypatch.setenv(VARIABLE, f"{store}:{store.parent / 'here'}")
    with pytest.raises(ConfigError, match="outside the places that this machine allows"):
        find(store, name, kind)
    with pytest.raises(ConfigError, match="outside the places that this machine allows"):
        find(store, "one", "run")  # by what lies in it
