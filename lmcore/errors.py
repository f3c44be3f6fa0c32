"""Every error this package raises on purpose, and which failures are worth a retry.

    LMError
    +-- ConfigError        a setting is wrong, or two settings do not fit together
    +-- CorpusError        no text, unreadable text, too little text
    |   +-- MissingTextError   nothing is at a given place, or no text among what is there
    |   +-- FileChangedError   a file is not the one that was scanned, or can no longer be read
    +-- TokenizerError     no tokenizer there, or one that cannot be used
    +-- StoreError         something in the store is missing, damaged or of a newer format
    |   +-- FormatError    it is of a newer format
    |   +-- NoSpaceError   the disk under the store is full
    +-- RunError           a run is locked, or what it was started with has changed
    +-- RegistryError      a model or version is not there, or another promotion was first
    +-- StoppedError       a signal asked for the end; the same command continues
    +-- TrainingError      the training process or the loss broke
        +-- TrainingKilledError   it was ended by a signal: the one LMError worth a retry

A message says what was found, where, and what to do next. ``is_transient`` alone decides about retries: a flaky disk or
network may recover, an LMError other than a killed child does not.

Damaged content is a StoreError. A file that cannot be read (no permission, too many open files, a failing disk) stays
an OSError or MemoryError. Its content may be good, so no caller removes, replaces or sets aside that file.
"""

import errno
import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ERROR_PREFIX = "error: "
"""Begins the message of a deliberate error; a parent process finds it by this."""
STOPPED_STATUS = 75
"""Exit status of a command that saved and ended on request (EX_TEMPFAIL: the same command again goes on)."""
SIGNALLED_STATUS = 128
"""And the number of the signal: exit status of a process that a signal ended, as shells give it."""
INTERRUPTED_STATUS = 130
"""Exit status of a command that Ctrl-C ended, as shells have it."""


class LMError(Exception):
    """Base of all deliberate errors; its text is meant for the person who started the run."""


class ConfigError(LMError):
    """A setting is wrong, or two settings do not fit together."""


class CorpusError(LMError):
    """No text, unreadable text, or too little of it."""


class MissingTextError(CorpusError):
    """Nothing is at a place that the settings give, or no file there is text that they ask for."""


class FileChangedError(CorpusError):
    """A file is no longer the one that was scanned, or cannot be read. ``reason`` is for the ledger."""

    def __init__(self, path: str, reason: str = "changed_while_read") -> None:
        super().__init__(
            f"{path}: {reason.replace('_', ' ')}: start again when no process writes to it, correct "
            "its permissions, or leave it out with corpus.exclude"
        )
        self.path = path
        self.reason = reason


class TokenizerError(LMError):
    """No tokenizer at the given place, or one that cannot be used."""


class StoreError(LMError):
    """Something in the store is missing, damaged, or of a newer format."""


class FormatError(StoreError):
    """Something in the store was written by a newer version of this package: never made again, never set aside."""


class NoSpaceError(StoreError):
    """The disk under the store is full."""


class RunError(LMError):
    """A run is locked by another process, or continues under changed conditions."""


class RegistryError(LMError):
    """A model or a version is not there, the gate refused it, or another promotion was first."""


class TrainingError(LMError):
    """Training cannot go on."""


class StoppedError(LMError):
    """Somebody asked for the end (a signal); what was done is saved and the same command continues."""


class TrainingKilledError(TrainingError):
    """The training process was ended by a signal; starting it again resumes from its checkpoint."""


_TRANSIENT_ERRNOS = {
    *(errno.EAGAIN, errno.EBUSY, errno.EINTR, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE),
    *(errno.ETIMEDOUT, errno.ECONNRESET, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH),
}


def is_transient(error: BaseException) -> bool:
    """True when the same call may succeed later without anybody changing anything."""
    if isinstance(error, LMError):
        return isinstance(error, TrainingKilledError)
    is_errno = isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNOS
    return is_errno or isinstance(error, ConnectionError | TimeoutError)


def could_not_read(error: BaseException) -> bool:
    """True for a failure of the system, not of the content. Libraries raise an OSError without a number for damage."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None)


@contextmanager
def owner_named(path: Path) -> Iterator[None]:
    """Let "permission denied" say which file that is, whose it is, and who was refused."""
    try:
        yield
    except PermissionError as error:
        number = error.errno or errno.EACCES
        raise PermissionError(number, f"{os.strerror(number)} {who_may(path)}", str(path)) from None


def who_may(path: Path) -> str:
    """For whom an access was refused, and in words whose the file or folder is, if no folder above hides it."""
    user = os.geteuid()
    try:
        about = os.stat(path)
    except OSError:
        return f"for {_name_of(user)}"
    words = f"for {_name_of(user)}: it belongs to {_name_of(about.st_uid)}, mode {about.st_mode & 0o777:o}"
    hint = "; users who share a store need a common group and umask 002 (docs/deploying.md)"
    return words if about.st_uid == user else words + hint


def _name_of(user: int) -> str:
    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


@contextmanager
def no_space_named(folder: Path) -> Iterator[None]:
    """Turn "No space left on device" from any library into a ``NoSpaceError`` that names ``folder``.

    safetensors and SentencePiece report a full disk in exceptions of their own, so the text counts too.
    """
    try:
        yield
    except NoSpaceError:
        raise
    except Exception as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if full or "No space left on device" in str(error):
            raise NoSpaceError(
                f"no space left while writing {folder}: nothing half-written was kept. "
                "Free space there or give another --store, then run the same command again."
            ) from error
        raise
