"""The index saves work and never changes a result."""

import os
import random
import time
from pathlib import Path

import pytest

from lmcore import clock
from lmcore.corpus.hash_index import HashIndex
from lmcore.corpus.remote import hash_stored, read_stored


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file that has rested long enough to be trusted."""
    path = tmp_path / "x.txt"
    path.write_text("one")
    os.utime(path, (1, 1))
    return path


def hashed(store: Path, path: Path, monkeypatch: pytest.MonkeyPatch, rehash: bool = False) -> tuple[str, int]:
    """The hash, and how many files were read for it."""
    calls = []
    with monkeypatch.context() as patch, HashIndex(store, rehash) as index:
        patch.setattr("lmcore.corpus.hash_index.read_stored", lambda name: calls.append(name) or read_stored(name))
        return index.hash_of(path), len(calls)


def test_an_unchanged_file_is_read_once(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = hash_stored(str(file))
    assert hashed(tmp_path, file, monkeypatch) == (expected, 1)
    assert hashed(tmp_path, file, monkeypatch) == (expected, 0)
    assert hashed(tmp_path, file, monkeypatch, rehash=True) == (expected, 1)


@pytest.mark.parametrize("change", ["size", "time", "inode"])
def test_a_changed_file_is_read_again(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    hashed(tmp_path, file, monkeypatch)
    if change == "inode":
        (tmp_path / "other").write_text("two")
        os.utime(tmp_path / "other", (1, 1))
        os.replace(tmp_path / "other", file)
    else:
        file.write_text("longer" if change == "size" else "two")
        os.utime(file, (1, 1) if change == "size" else (2, 2))
    assert hashed(tmp_path, file, monkeypatch) == (hash_stored(str(file)), 1)


def test_a_file_that_was_just_written_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.txt"
    path.write_text("one")
    os.utime(path, (time.time(), time.time()))
    hashed(tmp_path, path, monkeypatch)
    assert hashed(tmp_path, path, monkeypatch)[1] == 1


def test_a_file_dated_later_than_now_is_not_trusted_before_that(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its clock was wrong, or ours is: somebody may still write it without a new time."""
    later = clock.now() + 3600
    os.utime(file, (later, later))
    assert [hashed(tmp_path, file, monkeypatch)[1] for _ in range(2)] == [1, 1]
    monkeypatch.setattr(clock, "now", lambda: later + 10)
    assert [hashed(tmp_path, file, monkeypatch)[1] for _ in range(2)] == [1, 0]
    file.write_text("two")  # by a clock that has been put right
    assert hashed(tmp_path, file, monkeypatch) == (hash_stored(str(file)), 1)


@pytest.mark.parametrize("damage", [b"no database", b""])
def test_a_damaged_index_is_made_again(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes
) -> None:
    hashed(tmp_path, file, monkeypatch)
    (tmp_path / "index.sqlite").write_bytes(damage)
    assert hashed(tmp_path, file, monkeypatch)[1] == 1
    assert hashed(tmp_path, file, monkeypatch)[1] == 0


def test_an_index_that_cannot_be_opened_is_done_without(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "index.sqlite").mkdir()
    assert hashed(tmp_path, file, monkeypatch) == (hash_stored(str(file)), 1)
    assert (tmp_path / "index.sqlite").is_dir()


@pytest.mark.parametrize("seed", range(20))
def test_a_flipped_byte_in_the_index_changes_no_hash(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    expected = hashed(tmp_path, file, monkeypatch)[0]
    path, draw = tmp_path / "index.sqlite", random.Random(seed)
    content = bytearray(path.read_bytes())
    used = [place for place, byte in enumerate(content) if byte]
    content[draw.choice(used)] ^= draw.randrange(1, 256)
    path.write_bytes(content)
    assert hashed(tmp_path, file, monkeypatch)[0] == expected


def test_damaged_pages_are_made_again(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed(tmp_path, file, monkeypatch)
    path = tmp_path / "index.sqlite"
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert [hashed(tmp_path, file, monkeypatch)[1] for _ in range(2)] == [1, 0]


def test_where_there_is_no_store_none_is_made(file: Path, tmp_path: Path) -> None:
    with HashIndex(tmp_path / "nowhere") as index:
        index.hash_of(file)
    assert not (tmp_path / "nowhere").exists()


def test_values_are_remembered(tmp_path: Path) -> None:
    with HashIndex(tmp_path) as index:
        assert index.get("key") is None
        index.put("key", {"chunks": [1]})
    with HashIndex(tmp_path) as index:
        assert index.get("key") == {"chunks": [1]}
