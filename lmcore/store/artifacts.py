"""The store: one folder that holds everything made, and the ways anything is written into it.

    tokenizers/<id>/  shards/<key>/  datasets/<id>/manifest.json  runs/<run>/...  models/<name>/...

A folder is sealed: it is written under a temporary name, its manifest.json lists size and hash of
every file, all is synced, and one rename puts it in place. So a folder under its final name is
whole, and ``open_sealed`` proves it. Temporary names carry their owner (host, boot, process), and only
those of dead owners are swept. Locks are flock(2) locks: they die with the process that holds them.
"""

import ctypes
import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, ClassVar, Literal, Self
from uuid import uuid4

from blake3 import blake3
from pydantic import BaseModel, ConfigDict

from lmcore.errors import FormatError, RunError, StoppedError, StoreError, no_space_named, owner_named
from lmcore.store.allowed_paths import confine
from lmcore.store.strict_json import finite, from_json, to_json

FORMAT_VERSION = 1
"""Of everything in the store. It is part of every fingerprint: a new version never meets old work."""

MANIFEST = "manifest.json"
DIGEST_BYTES = 16
"""Of a BLAKE3 digest, where it names content."""

_TEMPORARY = ".tmp-"
_HERE, _RENAME_EXCHANGE = -100, 2
"""AT_FDCWD and a flag of renameat2(2)."""
_SECONDS_BETWEEN_TRIES = 0.1
_log = logging.getLogger(__name__)


class Output(BaseModel):
    """What a stage hands to the next: ids, paths and figures, small enough for JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def verify(self) -> None:
        """Raise ``StoreError`` unless everything this speaks of is on disk, whole and unchanged."""
        raise NotImplementedError(f"{type(self).__name__} has nothing on disk to verify")


class Record(Output):
    """An output that is kept as one JSON file in a run's folder."""

    file_name: ClassVar[str]
    folder: Path
    """The run's folder; not part of the file, so that a store may be moved."""

    @property
    def store(self) -> Path:
        return self.folder.parent.parent

    def save(self) -> Self:
        """Write the file and return this record."""
        content = finite(self.model_dump(mode="json", exclude={"folder"}))
        write_file(self.folder / self.file_name, json_bytes({**content, "checksum": _checksum(content)}))
        return self

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The record in ``folder``; None when it is missing, damaged or of another form. Raises OSError."""
        path = folder / cls.file_name
        try:
            with owner_named(path):
                text = path.read_bytes()
            content = json.loads(text)
            if content.pop("checksum") != _checksum(content):
                return None
            return cls.model_validate({**from_json(text), "folder": folder}, extra="ignore")
        except (FileNotFoundError, NotADirectoryError, ValueError, LookupError, TypeError, AttributeError):
            return None

    def verify(self) -> None:
        if self.load(self.folder) != self:
            raise StoreError(f"{self.folder / self.file_name} is missing or says something else")


def prepare_store(store: Path, creates: bool = True) -> Path:
    """Create the store if need be, sweep what dead processes left, and return its absolute path.

    Raises StoreError when it was written by a newer version of this package, or is not a folder, or without ``creates``
    is not there, and ConfigError when it is outside LM_DATA_ROOTS.
    """
    confine(store, "store")
    store = store.expanduser().absolute()
    if not creates and not (store / "format.json").exists():
        raise StoreError(f"there is no store in {store}: give another --store or LM_STORE")
    try:
        store.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise StoreError(f"store {store} is not a folder: give another --store or LM_STORE") from error
    except PermissionError as error:
        raise StoreError(
            f"store {store} cannot be created: permission denied. Give a --store you may write to"
        ) from error
    version_file = store / "format.json"
    if version_file.exists():
        check_version(_read_json(version_file), version_file)
    else:
        write_file(version_file, json_bytes({"format_version": FORMAT_VERSION}))
    sweep(store)
    for pattern in ("tokenizers", "shards", "datasets", "datasets/*", "inputs", "runs", "runs/*", "models/*"):
        for folder in store.glob(pattern):
            sweep(folder)
    return store


def check_version(content: dict[str, Any], where: Path) -> None:
    """Raise StoreError, or its FormatError, unless ``content`` was written in this or an older format."""
    found = content.get("format_version")
    if not isinstance(found, int):
        raise StoreError(f"{where} is damaged: it does not say which format it has")
    if found > FORMAT_VERSION:
        raise FormatError(
            f"{where} has format version {found}, this program reads up to {FORMAT_VERSION}: "
            "update the program, or give another --store"
        )


def json_bytes(content: Any) -> bytes:
    """Readable JSON, keys in the order given, UTF-8."""
    return (to_json(content, indent=1) + "\n").encode()


def json_line(content: Any) -> bytes:
    """One line of JSON with its end, UTF-8."""
    return (to_json(content) + "\n").encode()


def write_file(path: Path, content: bytes) -> None:
    """Replace ``path`` with ``content``: afterwards it holds the old bytes or the new, never a mix."""
    temporary = path.parent / f"{_owner_prefix()}{path.name}"
    with no_space_named(path.parent), owner_named(path.parent):
        try:
            with open(temporary, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


@contextmanager
def sealed_folder(path: Path, about: Callable[[], dict[str, Any]], replaces: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder; on success seal it and move it to ``path``.

    ``about()`` is called after the body and gives what the manifest says besides format_version and
    files. If another process put the same folder there first, theirs stays; a damaged one is
    replaced, with ``replaces`` any. On any failure nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f"{_owner_prefix()}{uuid4().hex}"
    with no_space_named(path.parent):
        try:
            temporary.mkdir()  # in here: a signal may raise right after it
            yield temporary
            _seal(temporary, about())
            while not (replaces and _exchanged(temporary, path)) and not _moved(temporary, path):
                if not replaces and is_sealed(path):
                    return
                remove(path)
            _sync_folder(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchanged(folder: Path, path: Path) -> bool:
    """Let two folders change names at once (renameat2 of Linux); False where that cannot be done."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(folder), _HERE, os.fsencode(path), _RENAME_EXCHANGE) == 0


def is_sealed(path: Path) -> bool:
    """True if the folder is there and proves whole. Reads every byte."""
    try:
        open_sealed(path)
    except StoreError:
        return False
    return True


def _moved(folder: Path, path: Path) -> bool:
    """Rename ``folder`` to ``path``; False when something stands there already."""
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _seal(folder: Path, about: dict[str, Any]) -> None:
    files = {}
    _follow_umask(folder)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[file.relative_to(folder).as_posix()] = {
            "bytes": file.stat().st_size,
            "blake3": hash_file(file),
        }
        _sync_file(file)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        _sync_folder(inner)
    write_file(folder / MANIFEST, manifest_bytes({**about, "files": files}))


def _follow_umask(folder: Path) -> None:
    """Give new files the mode that the umask gave the folder: safetensors writes 0600, and a copy has its source's."""
    mode = folder.stat().st_mode & 0o666
    for file in (path for path in folder.rglob("*") if path.is_file()):
        if file.stat().st_nlink == 1:  # another version's file is linked as it is
            file.chmod(mode)


def manifest_bytes(content: dict[str, Any]) -> bytes:
    """A manifest that knows its own checksum."""
    content = finite({"format_version": FORMAT_VERSION, **content})
    return json_bytes({**content, "checksum": _checksum(content)})


def _checksum(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return blake3(text.encode()).hexdigest(DIGEST_BYTES)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a sealed folder, its own checksum and format version checked.

    Raises StoreError when it is missing, damaged or newer than this program.
    """
    path = folder / MANIFEST
    content = _read_json(path)
    check_version(content, path)
    found = content.pop("checksum", None)
    # The bytes too: a flipped one may leave the content as it was.
    if found != _checksum(content) or manifest_bytes(content) != path.read_bytes():
        raise StoreError(f"{path} is damaged: its content does not match its checksum")
    return content


def open_sealed(folder: Path, hash_of: Callable[[Path], str] | None = None) -> dict[str, Any]:
    """Prove a sealed folder whole and return its manifest. Reads every byte, unless ``hash_of`` knows better.

    Raises StoreError that names the first file that is missing, truncated or changed, and OSError when one cannot be
    read, which says nothing about its content.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise StoreError(f"{file} is missing") from None
        if size != expected["bytes"]:
            raise StoreError(f"{file} has {size:,} bytes, written were {expected['bytes']:,}")
        with owner_named(file):
            digest = (hash_of or hash_file)(file)
        if digest != expected["blake3"]:
            raise StoreError(f"{file} is damaged: its bytes are not those that were written")
    return manifest


def content_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """What a manifest says besides what sealing a folder puts into it."""
    return {name: value for name, value in manifest.items() if name not in ("files", "format_version")}


def inside(store: Path, path: Path) -> str:
    """The path within the store, so that the store may be moved; of one that is elsewhere, the path itself."""
    return path.relative_to(store).as_posix() if path.is_relative_to(store) else str(path)


def is_whole(folder: Path, hash_of: Callable[[Path], str] | None = None) -> bool:
    """True if the sealed folder is there and proves whole; a damaged one is reported and removed.

    For folders named by content, which can be made again from their inputs.
    """
    if not folder.exists():
        return False
    try:
        open_sealed(folder, hash_of)
    except FormatError:
        raise
    except StoreError as error:
        _log.warning("making %s again: %s", folder.name, error)
        remove(folder)
        return False
    return True


def remove(folder: Path) -> None:
    """Delete a folder so that nobody sees it half gone: renamed aside first."""
    aside = folder.parent / f"{_owner_prefix()}removed-{time.monotonic_ns()}-{folder.name}"
    try:
        os.rename(folder, aside)
    except FileNotFoundError:
        return
    shutil.rmtree(aside)


def hash_file(path: Path) -> str:
    """Hash of the bytes of a file, 32 hexadecimal digits (BLAKE3, 128 bits)."""
    with open(path, "rb") as file:
        return hash_stream(file)


def hash_text(utf8: bytes) -> int:
    """64 bits that name a text: the beginning of its BLAKE3 digest, lowest byte first."""
    return int.from_bytes(blake3(utf8).digest(8), "little")


def hash_stream(stream: IO[bytes], before: bytes = b"") -> str:
    """``hash_file`` of what is left of an open file, after the bytes ``before`` that were read already."""
    digest = blake3(before)
    while block := stream.read(2**20):
        digest.update(block)
    return digest.hexdigest(DIGEST_BYTES)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with owner_named(path):
            content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except NotADirectoryError:
        raise StoreError(f"{path.parent} is not a folder") from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path} is damaged: it holds no JSON object")
    return content


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_sync_folder = _sync_file


def boot_id() -> str:
    """Names the host's present boot; process numbers count within it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def _owner_prefix() -> str:
    host = blake3(socket.gethostname().encode()).hexdigest(4)
    return f"{_TEMPORARY}{host}-{boot_id()[:8]}-{os.getpid()}-"


def sweep(folder: Path) -> None:
    """Remove temporaries in ``folder`` whose owner, a process of this host, is dead."""
    for path in leftovers(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def leftovers(folder: Path) -> list[Path]:
    """The temporaries that ``sweep`` would remove."""
    host, boot, _ = _owner_prefix().removeprefix(_TEMPORARY).split("-")[:3]
    found = []
    for path in folder.glob(f"{_TEMPORARY}{host}-*"):
        _, owner_boot, pid = path.name.removeprefix(_TEMPORARY).split("-")[:3]
        if owner_boot != boot or not is_alive(int(pid)):
            found.append(path)
    return found


def is_alive(pid: int) -> bool:
    """True if this host has a process of that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def locked(
    path: Path,
    when_locked: Literal["wait", "refuse"],
    should_stop: Callable[[], bool] = lambda: False,
    what: str = "",
    tell: Callable[[str], object] = _log.info,
) -> Iterator[None]:
    """Hold the lock file ``path``; it says who holds it. ``should_stop`` is asked while waiting.

    ``what`` is what it stands for, if not the folder it is in. ``tell`` hears for whom it waits.

    Raises RunError when another process holds it and ``when_locked`` is "refuse", StoppedError when
    ``should_stop`` said so.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    what = what or str(path.parent)
    with open(path, "a+") as file:
        if not _lock(file):
            file.seek(0)
            owner = file.read().strip() or "another process"
            if when_locked == "refuse":
                raise RunError(f"{what} is in use by {owner}: wait for it to end, or start with --when_locked wait")
            tell(f"waiting: {what} is in use by {owner}")
            # A blocking flock would begin again after every signal whose handler only takes a note.
            while not _lock(file):
                if should_stop():
                    raise StoppedError(f"stopped on request while {what} was in use by {owner}")
                time.sleep(_SECONDS_BETWEEN_TRIES)
        file.seek(0)
        file.truncate()
        owner_now = {"host": socket.gethostname(), "pid": os.getpid(), "boot": boot_id()}
        file.write(to_json(owner_now))
        file.flush()
        yield


@contextmanager
def in_use(store: Path) -> Iterator[None]:
    """Make new things in a store from old ones, as many at a time as like to; nothing is taken away meanwhile."""
    with open(_use(store), "a+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextmanager
def out_of_use(store: Path) -> Iterator[None]:
    """Take things away from a store. Raises RunError while somebody makes new ones."""
    with open(_use(store), "a+") as file:
        if not _lock(file):
            raise RunError(f"store {store} is in use: text is being tokenized, or things are being removed. Try later")
        yield


def _use(store: Path) -> Path:
    store.mkdir(parents=True, exist_ok=True)
    return store / "in_use"


def _lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
