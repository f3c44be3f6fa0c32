"""Local files and URLs as file objects. pyarrow.fs opens s3 and gs, fsspec opens https, hf and others.

A remote file is a stream of its stored bytes. Errors name the URL: FileNotFoundError, PermissionError,
FileChangedError if the file was replaced during the read, and ConnectionError for all else, which is retried. A URL
with credentials is refused, because manifests contain URLs.
"""

import errno
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from typing import IO, Any
from urllib.parse import parse_qsl

import fsspec
from blake3 import blake3
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.utils import glob_translate
from pyarrow.fs import FileSelector, FileSystem

from lmcore import clock
from lmcore.errors import ConfigError, CorpusError, FileChangedError, MissingTextError
from lmcore.settings.urls import ARROW_SCHEMES, WEB_SCHEMES, is_url, split_url
from lmcore.store.allowed_paths import check_allowed
from lmcore.store.files import DIGEST_BYTES

SECONDS_OF_DOUBT = 2.0
"""A file written in the last seconds may change again without a new time stamp."""

_READ_BYTES = 2**23
"""A request to S3 takes as long as the transfer of a few MiB."""
_SECONDS_WITHOUT_A_BYTE = 60
_BLOCK_BYTES = 2**20
_SECRET = re.compile(r"secret|token|passw|signature|credential|access_?key|api_?key|^sig$|^key$", re.IGNORECASE)


def open_stored(path: str) -> IO[bytes]:
    """A stream of the stored bytes of a file; seekable if it is local. A pipe reads as empty, without waiting.

    Raises ConfigError if the path leads outside LM_DATA_ROOTS.
    """
    check_allowed(path, "corpus")
    if not is_url(path):
        return open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    return io.BufferedReader(_RemoteFile(path), _READ_BYTES)


def size_and_version(path: str) -> tuple[int | None, str]:
    """Bytes of a file (None if its server does not report them) and its version.

    The version is size, time and inode of a local file, size and ETag or time of a remote one. It is empty if the
    server reports neither ETag nor time. A server is asked once.
    """
    if is_url(path):
        with _failures_named(path):
            return _ask_server(path)[:2]
    found = os.stat(path)
    return found.st_size, f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"


def hash_stored(path: str) -> str:
    """``hash_file`` for paths and URLs."""
    return read_stored(path)[0]


def read_stored(path: str) -> tuple[str, int, bytes]:
    """The hash of a file, its bytes, and its first megabyte, by one read."""
    digest, size, head = blake3(), 0, b""
    with open_stored(path) as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
            head, size = head or block, size + len(block)
    return digest.hexdigest(DIGEST_BYTES), size, head


# --- listing ---


def remote_files(url: str, setting: str) -> dict[str, str]:
    """The files at or below a URL, or that match its wildcards, as URL -> path below the given URL.

    The path of a file that the URL names itself is empty. Raises CorpusError if there is no file, access is denied, or
    the URL holds credentials; ConnectionError if the server does not answer.
    """
    _refuse_credentials(url, setting)
    scheme, _, options = split_url(url)
    try:
        with _failures_named(url):
            found = _listed(scheme, *_system(url))
    except FileNotFoundError as error:
        raise MissingTextError(f"{setting}: {url} does not exist{_bucket_missing(url)}: check the address") from error
    except PermissionError as error:
        raise CorpusError(f"{setting}: {url}: {error.strerror}") from error
    if not found:
        raise MissingTextError(f"{setting}: no file is at {url}, and none below it")
    if scheme in WEB_SCHEMES:
        return found
    return {f"{scheme}://{path.removeprefix(f'{scheme}://')}{options}": below for path, below in found.items()}


def _listed(scheme: str, system: Any, inside: str) -> dict[str, str]:
    is_web = scheme in WEB_SCHEMES
    wildcard = re.search(r"[*\[]" if is_web else r"[*?\[]", inside)  # a web address has its query behind a ?
    system.invalidate_cache()
    if wildcard:
        folder = inside[: wildcard.start()].rpartition("/")[0]
        depth = None if "**" in inside else inside.removeprefix(folder).strip("/").count("/") + 1
        matches = re.compile(glob_translate(inside)).match
        found = [path for path in _below(system, folder + "/" * is_web, depth) if matches(path)]
    elif not (is_web and inside.endswith("/")) and system.info(inside)["type"] == "file":
        return {inside: ""}
    else:
        folder = inside.rstrip("/")
        found = list(_below(system, inside, None))
    return {path: path.removeprefix(folder).lstrip("/") for path in sorted(found)}


def _below(system: Any, folder: str, depth: int | None) -> Iterator[str]:
    """The files below a folder, at most ``depth`` levels down.

    fsspec's ``find`` is not used: it ignores folders that cannot be listed.
    """
    if isinstance(system, ArrowFSWrapper):
        everything = system.fs.get_file_info(FileSelector(folder, recursive=depth != 1))
        yield from (about.path for about in everything if about.is_file)
        return
    for about in system.ls(folder, detail=True):
        path = about["name"]
        if about["type"] != "directory":
            yield path
        elif depth != 1 and not path.rstrip("/").rpartition("/")[2].startswith("."):
            yield from _below(system, path, depth and depth - 1)


def _bucket_missing(url: str) -> str:
    scheme, inside, _ = split_url(url)
    bucket = inside.partition("/")[0]
    if scheme not in ARROW_SCHEMES or _system(url)[0].exists(bucket):
        return ""
    return f" (there is no bucket {bucket})"


def _refuse_credentials(url: str, setting: str) -> None:
    scheme, inside, options = split_url(url)
    host = inside.partition("/")[0]
    port = host.rpartition("]")[2].partition(":")[2]
    found = [name for name, _ in parse_qsl(options[1:], keep_blank_values=True) if _SECRET.search(name)]
    if scheme != "hf" and ("@" in host or (port and not port.isdecimal())):
        found.append("a user or password")
    if found:
        raise CorpusError(
            f"{setting}: a URL with {scheme}:// holds {' and '.join(found)}, and would stand in manifests and reports. "
            "Give the URL without it and the credentials in the environment (AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN, ~/.netrc for https)"
        )


# --- reading ---


class _RemoteFile(io.RawIOBase):
    """A remote file, read from start to end. Raises the errors that the module docstring names."""

    def __init__(self, url: str) -> None:
        self._url = url
        with _failures_named(url):
            _, self._version, open_stream = _ask_server(url)
            self._stream = open_stream()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            with _failures_named(self._url):
                block = self._stream.read(len(buffer))
        except OSError as error:
            if self._version and size_and_version(self._url)[1] != self._version:
                raise FileChangedError(self._url) from error
            raise
        buffer[: len(block)] = block
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()


def _ask_server(url: str) -> tuple[int | None, str, Callable[[], Any]]:
    """Size and version of a remote file, and a function that opens its stream. The server is asked once for both."""
    system, inside = _system(url)
    if isinstance(system, ArrowFSWrapper):
        stream = system.fs.open_input_file(inside)  # pyarrow's listings hold no ETag
        about = {name: value.decode() for name, value in stream.metadata().items()}
        return stream.size(), _version(stream.size(), about), lambda: stream
    about = system.info(inside)
    options: dict[str, Any] = {}
    if url.startswith(("http:", "https:", "hf:")):
        options["block_size"] = 0  # one request, read as it comes
    if url.startswith(("http:", "https:")):
        options["size"] = about["size"]
    return about["size"], _version(about["size"], about), lambda: system.open(inside, "rb", **options)


def _version(size: int | None, about: Mapping[str, Any]) -> str:
    names = {name.lower().replace("_", "-"): value for name, value in about.items() if value}
    tag = names.get("etag") or names.get("blob-id")
    if tag:
        return f"{size} {tag}"
    changed = names.get("last-modified") or names.get("lastmodified") or names.get("mtime")
    if isinstance(changed, str):
        try:
            changed = parsedate_to_datetime(changed)
        except ValueError:
            return ""
    if isinstance(changed, datetime):
        changed = changed.timestamp()
    return f"{size} {changed}" if changed and changed < clock.now() - SECONDS_OF_DOUBT else ""


# --- file systems ---


def _system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it. Raises CorpusError if no installed package opens it."""
    scheme, inside, options = split_url(url)
    try:
        if scheme in ARROW_SCHEMES:
            return _arrow_system(scheme, inside.partition("/")[0], options), inside.rstrip("/")
        if scheme in WEB_SCHEMES:
            return _web_system(scheme), url
        system, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise CorpusError(f"{url}: nothing installed here opens it ({error}): check the address") from error
    return system, path


@lru_cache
def _arrow_system(scheme: str, bucket: str, options: str) -> Any:
    system, _ = FileSystem.from_uri(f"{scheme}://{bucket}{options}")
    return ArrowFSWrapper(system)


@lru_cache
def _web_system(scheme: str) -> Any:
    """A file system without a total time limit that returns stored bytes and uses proxies and ~/.netrc.

    Each request is checked, so neither a redirect nor a link in a listing leads out of LM_DATA_ROOTS.
    """
    import aiohttp

    async def confined(request: Any, send: Any) -> Any:
        check_allowed(str(request.url), "corpus")
        return await send(request)

    wait = aiohttp.ClientTimeout(total=None, sock_connect=_SECONDS_WITHOUT_A_BYTE, sock_read=_SECONDS_WITHOUT_A_BYTE)
    headers = {"Accept-Encoding": "identity"}
    options = {"timeout": wait, "headers": headers, "auto_decompress": False, "trust_env": True}
    return fsspec.filesystem(scheme, client_kwargs=options | {"middlewares": (confined,)})


# --- errors ---


@contextmanager
def _failures_named(url: str) -> Iterator[None]:
    """Turn every error of a file system into one of three errors that name the URL."""
    try:
        yield
    except (CorpusError, MemoryError):
        raise
    except ValueError as error:
        raise CorpusError(f"{url}: {error}: check the address") from error
    except Exception as error:
        causes: list[BaseException] = [error]
        while causes[-1].__cause__ is not None:
            causes.append(causes[-1].__cause__)
        if isinstance(causes[-1], ConfigError):
            raise causes[-1] from None
        raise _failure(causes, url) from error


def _failure(causes: list[Any], url: str) -> OSError:
    statuses = [
        getattr(c, "status", None) or getattr(getattr(c, "response", None), "status_code", None) for c in causes
    ]
    status = next(filter(None, statuses), None)
    # fsspec raises FileNotFoundError also if a server is down; then the cause says so.
    reason = next((str(c) for c in causes if str(c) and not isinstance(c, FileNotFoundError)), "") or repr(causes[-1])
    reason = re.sub(r"\?[^\s'\")]*", "", reason)  # a redirect may have led to a signed URL
    if status in (401, 403) or isinstance(causes[-1], PermissionError) or "ACCESS_DENIED" in reason:
        return PermissionError(errno.EACCES, f"access is denied ({reason}): give credentials in the environment", url)
    if status in (404, 410) or isinstance(causes[-1], FileNotFoundError) or "AWS Error NO_SUCH_" in reason:
        return FileNotFoundError(errno.ENOENT, "does not exist", url)
    return ConnectionError(
        f"{url} cannot be read: {reason}. Check the network and the address, then run the same command again"
    )
