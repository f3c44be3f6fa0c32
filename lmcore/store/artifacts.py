"""Artifacts: folders that are complete or absent.

An artifact is written under a temporary name. Its manifest.json lists size and hash of each file. All is synced, then
one rename puts it in place. ``verify_artifact`` compares the files with the manifest.
"""

import ctypes
import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from blake3 import blake3

from lmcore.errors import FormatError, StoreError, no_space_named, owner_named
from lmcore.store.files import DIGEST_BYTES, hash_file, remove, sync, temporary_name, write_file
from lmcore.store.json_files import finite, json_bytes, read_object

FORMAT_VERSION = 1
"""Version of all that is in a store. It is part of each fingerprint, so a new version never reuses old work."""

MANIFEST = "manifest.json"
_HERE, _RENAME_EXCHANGE = -100, 2
"""AT_FDCWD and a flag of renameat2(2)."""
_log = logging.getLogger(__name__)


@contextmanager
def write_artifact(path: Path, about: Callable[[], dict[str, Any]], replaces: bool = False) -> Iterator[Path]:
    """Yield an empty temporary folder. On success it becomes the artifact ``path``, on failure it is removed.

    ``about()`` is called after the body and returns what the manifest says besides format_version and files. Where
    another process wrote the same artifact first, that one is kept. A damaged one is replaced, with ``replaces`` any.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / temporary_name(uuid4().hex)
    with no_space_named(path.parent):
        try:
            with owner_named(path.parent):
                temporary.mkdir()  # inside the try: a signal may raise right after it
            yield temporary
            _complete(temporary, about())
            while not (replaces and _exchanged(temporary, path)) and not _moved(temporary, path):
                if not replaces and find_artifact(path):
                    return
                remove(path)
            sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _exchanged(folder: Path, path: Path) -> bool:
    """Swap the names of two folders at once (renameat2 of Linux); False where the system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    return rename is not None and rename(_HERE, os.fsencode(folder), _HERE, os.fsencode(path), _RENAME_EXCHANGE) == 0


def _moved(folder: Path, path: Path) -> bool:
    """Rename ``folder`` to ``path``; False when ``path`` exists already."""
    try:
        os.rename(folder, path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _complete(folder: Path, about: dict[str, Any]) -> None:
    """Sync all files and write the manifest. New files get the mode that the umask gave the folder."""
    files, mode = {}, folder.stat().st_mode & 0o666
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            about_file = path.stat()
            if about_file.st_nlink == 1:  # a hard link shares its mode with another version's file
                path.chmod(mode)  # safetensors writes 0600, and a copy has the mode of its source
            files[path.relative_to(folder).as_posix()] = {"bytes": about_file.st_size, "blake3": hash_file(path)}
        sync(path)
    write_file(folder / MANIFEST, manifest_bytes({**about, "format_version": FORMAT_VERSION, "files": files}))


def manifest_bytes(content: dict[str, Any]) -> bytes:
    """The text of a manifest with its own checksum."""
    content = finite({"format_version": FORMAT_VERSION, **content})
    return json_bytes({**content, "checksum": checksum(content)})


def checksum(content: dict[str, Any]) -> str:
    """A hash of JSON content, whatever the order of its keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return blake3(text.encode()).hexdigest(DIGEST_BYTES)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact. Its checksum and format version are checked, its files are not.

    Raises StoreError when it is missing, damaged or newer than this program.
    """
    path = folder / MANIFEST
    content = read_object(path)
    check_version(content, path)
    content.pop("checksum", None)
    if manifest_bytes(content) != path.read_bytes():
        raise StoreError(f"{path} is damaged: its content does not match its checksum")
    return content


def check_version(content: dict[str, Any], where: Path) -> None:
    """Raise StoreError unless ``content`` has this format version or an older one; FormatError for a newer one."""
    found = content.get("format_version")
    if not isinstance(found, int):
        raise StoreError(f"{where} is damaged: it does not say which format it has")
    if found > FORMAT_VERSION:
        raise FormatError(
            f"{where} has format version {found}, this program reads up to {FORMAT_VERSION}: "
            "update the program, or give another --store"
        )


def verify_artifact(folder: Path, hash_of: Callable[[Path], str] | None = None) -> dict[str, Any]:
    """The manifest of an artifact whose files are complete and unchanged. Reads each byte, unless ``hash_of`` is given.

    Raises StoreError that names the first file that is missing, truncated or changed, and OSError when a file cannot
    be read, which says nothing about its content.
    """
    manifest = read_manifest(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        try:
            size = file.stat().st_size
        except FileNotFoundError:
            raise StoreError(f"{file} is missing") from None
        if size != expected["bytes"]:
            raise StoreError(f"{file} has {size:,} bytes, expected {expected['bytes']:,}")
        with owner_named(file):
            digest = (hash_of or hash_file)(file)
        if digest != expected["blake3"]:
            raise StoreError(f"{file} is damaged: its hash is {digest}, expected {expected['blake3']}")
    return manifest


def find_artifact(
    folder: Path, hash_of: Callable[[Path], str] | None = None, keep_damaged: bool = False
) -> dict[str, Any] | None:
    """The manifest of an artifact that ``verify_artifact`` accepts; None for a missing or damaged one.

    A damaged one is reported and removed, so that it is made again. With ``keep_damaged`` it is renamed to bad-<name>,
    for what cannot be made again from its inputs. Raises FormatError for one of a newer format, and leaves it.
    """
    try:
        return verify_artifact(folder, hash_of)
    except FormatError:
        raise
    except StoreError as error:
        if not folder.exists():
            return None
        if keep_damaged:
            aside = folder.with_name(f"bad-{folder.name}")
            remove(aside)
            os.rename(folder, aside)
            _log.warning("%s set aside as %s: %s", folder.name, aside.name, error)
        else:
            remove(folder)
            _log.warning("making %s again: %s", folder.name, error)
        return None
