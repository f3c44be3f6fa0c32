"""Files by path or URL: local ones, and those that pyarrow.fs (s3, gs) or fsspec (hf, https) opens as a stream."""

import os
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from lmcore.errors import CorpusError
from lmcore.store import hash_file, hash_stream

_ARROW_SCHEMES = ("s3", "gs", "gcs")


def is_url(path: str) -> bool:
    return "://" in path


def open_stored(path: str) -> IO[bytes]:
    """The stored bytes of a file, seekable."""
    if not is_url(path):
        return open(path, "rb")
    system, inside = _system(path)
    stream: IO[bytes] = system.open(inside, "rb")
    return stream


def stored_size(path: str) -> int:
    """Bytes."""
    if not is_url(path):
        return os.path.getsize(path)
    system, inside = _system(path)
    return int(system.info(inside)["size"])


def version(path: str) -> str:
    """Changes when the file does: size, time and inode of a local one, size and ETag or time of a remote one."""
    if not is_url(path):
        found = os.stat(path)
        return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
    system, inside = _system(path)
    about = system.info(inside)
    tags = [about.get(name) for name in ("ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified")]
    return f"{about.get('size')} {next((tag for tag in tags if tag), '')}"


def hash_stored(path: str) -> str:
    """``hash_file`` for paths and URLs."""
    if not is_url(path):
        return hash_file(Path(path))
    with open_stored(path) as stream:
        return hash_stream(stream)


def remote_files(url: str, setting: str) -> list[str]:
    """The URLs of the files that a URL names: itself, what lies below it, or what its * and ? match.

    Raises CorpusError when there are none.
    """
    system, inside = _system(url)
    try:
        if any(mark in inside for mark in "*?["):
            found = [path for path in system.glob(inside) if system.isfile(path)]
        else:
            found = [inside] if system.isfile(inside) else system.find(inside)
    except FileNotFoundError:
        found = []
    if not found:
        raise CorpusError(f"{setting}: {url} does not exist, or is an empty folder")
    query = url.partition("?")[1:]
    scheme = url.partition("://")[0]
    if found == [inside]:
        return [url]
    return sorted(f"{scheme}://{path.removeprefix(f'{scheme}://')}{''.join(query)}" for path in found)


def _system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path in it. Raises CorpusError when nothing here opens such URLs."""
    scheme, _, rest = url.partition("://")
    if scheme in _ARROW_SCHEMES:
        path, _, query = rest.partition("?")
        return _arrow_system(scheme, path.partition("/")[0], query), path.rstrip("/")
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CorpusError(f"{url}: nothing installed here opens {scheme}:// ({error})") from error
    return system, path


@lru_cache
def _arrow_system(scheme: str, bucket: str, query: str) -> Any:
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.fs import FileSystem

    options = f"?{query}" if query else ""
    system, _ = FileSystem.from_uri(f"{scheme}://{bucket}{options}")
    return ArrowFSWrapper(system)
