"""What stands under its final name is whole, and provably so."""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmcore.errors import FormatError, NoSpaceError, StoreError
from lmcore.store.artifacts import find_artifact, read_manifest, verify_artifact, write_artifact
from lmcore.store.files import remove_stale_temp, write_file
from lmcore.store.layout import prepare_store
from tests.conftest import start

DIE_WHILE_WRITING = """
import os, sys
from pathlib import Path
from lmcore.store.artifacts import write_artifact
with write_artifact(Path(sys.argv[1]), dict) as folder:
    (folder / "a").write_bytes(b"1")
    print("writing", flush=True)
    sys.stdin.read()
"""


def make(path: Path, **files: bytes) -> Path:
    with write_artifact(path, lambda: {"kind": "test"}) as folder:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    return path


def test_a_sealed_folder_opens_with_its_manifest(tmp_path: Path) -> None:
    manifest = verify_artifact(make(tmp_path / "x", a=b"1", b=b"22"))
    assert manifest["kind"] == "test"
    assert {name: file["bytes"] for name, file in manifest["files"].items()} == {"a": 1, "b": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with write_artifact(tmp_path / "x", dict) as folder:
            (folder / "a").write_bytes(b"1")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_the_first_of_two_writers_stays(tmp_path: Path) -> None:
    with write_artifact(tmp_path / "x", dict) as slow:
        make(tmp_path / "x", a=b"first")
        (slow / "a").write_bytes(b"second")
    assert (tmp_path / "x" / "a").read_bytes() == b"first"


def test_a_writer_that_comes_first_by_a_moment_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def rename_second(*paths: Path) -> None:
        monkeypatch.undo()
        make(tmp_path / "x", a=b"first")
        rename(*paths)

    monkeypatch.setattr(os, "rename", rename_second)
    make(tmp_path / "x", a=b"second")
    assert (tmp_path / "x" / "a").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_damaged_one_is_replaced(tmp_path: Path) -> None:
    path = make(tmp_path / "x", a=b"old")
    (path / "a").write_bytes(b"bad")
    make(path, a=b"new")
    assert (path / "a").read_bytes() == b"new"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_cut_or_missing_byte_is_noticed(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    path = make(tmp_path / "x", a=b"some content", b=b"more")
    file = path / data.draw(st.sampled_from(["a", "b", "manifest.json"]))
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    how = data.draw(st.sampled_from(["flip", "cut", "delete"]))
    if how == "delete":
        file.unlink()
    elif how == "cut":
        file.write_bytes(whole[:at])
    else:
        file.write_bytes(whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :])
    # White space at the end of the manifest is no part of what it says.
    if file.name != "manifest.json" or json_or_none(file) != json.loads(whole):
        with pytest.raises(StoreError, match=file.name):
            verify_artifact(path)
    with suppress(FormatError):
        make(path, a=b"some content", b=b"more")


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_damaged_is_removed_to_be_made_again(tmp_path: Path, data: st.DataObject) -> None:
    shutil.rmtree(tmp_path / "x", ignore_errors=True)
    path = make(tmp_path / "x", a=b"some content")
    file = path / data.draw(st.sampled_from(["a", "manifest.json"]))
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 2))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    if (json_or_none(path / "manifest.json") or {}).get("format_version", 0) not in range(2, 100):
        assert find_artifact(path) is None
        assert not path.exists()


@pytest.mark.parametrize("key", [b"format_version", b"checksum", b"files"])
def test_a_manifest_with_a_damaged_key_is_made_again(tmp_path: Path, key: bytes) -> None:
    manifest = make(tmp_path / "x", a=b"1") / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(key, b"X" + key[1:]))
    assert find_artifact(tmp_path / "x") is None


def json_or_none(path: Path) -> object:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None


def test_a_newer_format_is_refused_never_removed(tmp_path: Path) -> None:
    path = make(tmp_path / "x", a=b"1")
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format_version": 2}))
    for read in (read_manifest, verify_artifact, find_artifact):
        with pytest.raises(StoreError, match="format version 2"):
            read(path)
    with pytest.raises(StoreError, match="format version 2"):
        make(path, a=b"2")
    assert (path / "a").read_bytes() == b"1"


def test_a_damaged_folder_is_removed_whatever_its_path_is(tmp_path: Path) -> None:
    path = make(tmp_path / "format version" / "x", a=b"1")
    (path / "a").write_bytes(b"2")
    assert not find_artifact(path)
    assert not path.exists()


def test_a_store_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    store = prepare_store(tmp_path / "store")
    (store / "format.json").write_text('{"format_version": 2}')
    with pytest.raises(StoreError, match=r"format version 2, this program reads up to 1.*another --store"):
        prepare_store(store)


def test_a_file_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file is a file: give another folder with --store"):
        prepare_store(tmp_path / "file")


def test_a_process_killed_while_writing_leaves_nothing_under_the_final_name(tmp_path: Path) -> None:
    child = start("-c", DIE_WHILE_WRITING, tmp_path / "x", stdin=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    remove_stale_temp(tmp_path)
    assert list(tmp_path.iterdir()) != []  # its owner lives
    child.kill()
    child.communicate()
    assert not (tmp_path / "x").exists()
    remove_stale_temp(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_a_process_left_beside_a_manifest_is_swept_with_the_store(tmp_path: Path) -> None:
    dataset = prepare_store(tmp_path) / "datasets" / "id"
    dataset.mkdir(parents=True)
    child = start("-c", DIE_WHILE_WRITING, dataset / "x", stdin=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == "writing\n"
    child.kill()
    child.communicate()
    assert list(dataset.iterdir()) != []
    prepare_store(tmp_path)
    assert list(dataset.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> object:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mount.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_leaves_nothing_half_written(small_disk: Path) -> None:
    write_file(small_disk / "file", b"old")
    with pytest.raises(NoSpaceError, match=r"no space left while writing .*give another --store"):
        make(small_disk / "x", a=bytes(2**21))
    with pytest.raises(NoSpaceError):
        write_file(small_disk / "file", bytes(2**21))
    assert [path.name for path in small_disk.iterdir()] == ["file"]
    assert (small_disk / "file").read_bytes() == b"old"
