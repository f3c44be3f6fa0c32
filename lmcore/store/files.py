"""Files that are replaced whole, and hashes of content."""

import os
from pathlib import Path
from typing import Any

from blake3 import blake3

from lmcore.errors import StoreError, no_space_named, owner_named
from lmcore.store.strict_json import from_json, to_json
from lmcore.store.temporary import temporary_name

DIGEST_BYTES = 16
"""Length of a BLAKE3 digest that names content."""


def write_file(path: Path, content: bytes) -> None:
    """Replace the file atomically: after a crash it holds the old bytes or the new bytes."""
    temporary = path.parent / temporary_name(path.name)
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
    sync(path.parent)


def sync(path: Path) -> None:
    """Write a file or the entries of a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def json_bytes(content: Any) -> bytes:
    """Indented JSON in UTF-8, keys in the order given."""
    return (to_json(content, indent=1) + "\n").encode()


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises StoreError when the file is missing or damaged."""
    try:
        with owner_named(path):
            content = from_json(path.read_bytes())
    except FileNotFoundError:
        raise StoreError(f"{path} is missing") from None
    except NotADirectoryError:
        raise StoreError(f"{path.parent} is not a folder") from None
    except ValueError as error:
        raise StoreError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise StoreError(f"{path} is damaged: it holds no JSON object")
    return content


def hash_file(path: Path) -> str:
    """The BLAKE3 hash of a file, 32 hexadecimal digits."""
    digest = blake3()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest(DIGEST_BYTES)


def hash_text(utf8: bytes) -> int:
    """A 64-bit hash of a text: the first bytes of its BLAKE3 digest, lowest byte first."""
    return int.from_bytes(blake3(utf8).digest(8), "little")
