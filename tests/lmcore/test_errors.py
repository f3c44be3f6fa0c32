"""Which failures are worth a retry, and what a full disk is called."""

import errno
import os
from pathlib import Path

import pytest

from lmcore import errors
from lmcore.errors import (
    LMError,
    NoSpaceError,
    StoreError,
    TrainingError,
    TrainingKilledError,
    is_transient,
    no_space_named,
)


def deliberate() -> list[type[LMError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, LMError)]


def test_of_all_deliberate_errors_only_a_killed_training_is_worth_a_retry() -> None:
    assert [kind for kind in deliberate() if is_transient(kind("text"))] == [TrainingKilledError]
    assert len(deliberate()) > 8


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "disk"),
        OSError(errno.ESTALE, "nfs"),
        ConnectionResetError(),
        TimeoutError(),
        BlockingIOError(errno.EAGAIN, ""),
    ],
)
def test_a_flaky_disk_or_network_is_transient(error: OSError) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "full"),
        OSError("no number"),
        FileNotFoundError(errno.ENOENT, ""),
        PermissionError(errno.EACCES, ""),
        ValueError(),
        MemoryError(),
        KeyboardInterrupt(),
    ],
)
def test_what_stays_wrong_is_not_transient(error: BaseException) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_named_with_its_folder(tmp_path: Path, number: int) -> None:
    with pytest.raises(NoSpaceError, match=str(tmp_path)), no_space_named(tmp_path):
        raise OSError(number, os.strerror(number))


def test_a_full_disk_is_known_by_its_text_in_another_librarys_exception(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError), no_space_named(tmp_path):
        raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_a_really_full_disk_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoSpaceError), no_space_named(tmp_path), open("/dev/full", "wb", buffering=0) as file:
        file.write(b"x")


def test_other_errors_pass_unchanged_and_the_first_folder_is_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^bug$"), no_space_named(tmp_path):
        raise ValueError("bug")
    with pytest.raises(NoSpaceError, match="inner"), no_space_named(tmp_path), no_space_named(Path("inner")):
        raise OSError(errno.ENOSPC, "")


def test_the_tree_is_the_one_in_the_docstring() -> None:
    assert all(kind.__name__ in str(errors.__doc__) for kind in deliberate())
    assert issubclass(NoSpaceError, StoreError)
    assert issubclass(TrainingKilledError, TrainingError)
