"""A hub on this machine, for tests: as much of the Hugging Face hub's HTTP API as huggingface_hub asks for a push.

Repositories are made, files told apart into small and large ones, large ones put into LFS storage, and all of it
committed. It keeps what it got, and refuses what a test tells it to.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

TOKEN = "hf_of_the_test"
LFS_WARNING = "ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning"
"""For pytest: what huggingface_hub makes its HTTP client say when it uploads a file by LFS."""


@dataclass
class Repository:
    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=list)
    """Their messages."""


class Hub(ThreadingHTTPServer):
    """Its repositories by name; ``refuse`` gives the status of requests whose path contains a text."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.refuse: dict[str, int] = {}
        self.asked: list[str] = []

    def write(self, repository: str, folder: Path) -> Path:
        """A repository's files, as who clones it gets them."""
        folder.mkdir()
        for name, content in self.repositories[repository].files.items():
            (folder / name).write_bytes(content)
        return folder


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if not self._welcome():
            return
        _, _, _, user, name, *rest = self.path.partition("?")[0].split("/")
        repository = self.server.repositories.get(f"{user}/{name}")
        if repository is None:
            self._answer({"error": "Repository not found"}, 404)
        elif rest[:1] == ["tree"]:
            self._answer([{"type": "file", "path": path, **_named(path, b)} for path, b in repository.files.items()])
        else:
            self._answer({"id": f"{user}/{name}", "sha": str(len(repository.commits)), "siblings": []})

    def do_POST(self) -> None:
        content = self._content()
        if not self._welcome():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(content))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif self.path.endswith("/objects/batch"):
            self._answer(
                {"transfer": "basic", "objects": [self._upload(each) for each in json.loads(content)["objects"]]}
            )
        else:
            _, _, _, user, name, what, _ = self.path.split("/")
            repository = self.server.repositories[f"{user}/{name}"]
            self._preupload(repository, content) if what == "preupload" else self._commit(
                repository, f"{user}/{name}", content
            )

    def do_PUT(self) -> None:
        content = self._content()
        if not self._welcome(needs_token=False):  # the address itself is the right to write there
            return
        self.server.large[self.path.rpartition("/")[2]] = content
        self._answer({})

    def _create(self, wanted: dict[str, Any]) -> None:
        name = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if name in self.server.repositories else 200
        is_private = wanted.get("private") or wanted.get("visibility") == "private"
        self.server.repositories.setdefault(name, Repository(bool(is_private)))
        self._answer({"url": f"{self.server.url}/{name}"}, status)

    def _upload(self, wanted: dict[str, Any]) -> dict[str, Any]:
        known = wanted["oid"] in self.server.large
        actions = {"upload": {"href": f"{self.server.url}/storage/{wanted['oid']}"}}
        return wanted | ({} if known else {"actions": actions})

    def _preupload(self, repository: Repository, content: bytes) -> None:
        paths = [file["path"] for file in json.loads(content)["files"]]
        about = {path: {"path": path, "uploadMode": _mode(path), "shouldIgnore": False} for path in paths}
        for path in repository.files.keys() & about.keys():
            about[path]["oid"] = _named(path, repository.files[path])["oid"]
        self._answer({"files": list(about.values())})

    def _commit(self, repository: Repository, name: str, content: bytes) -> None:
        for line in content.splitlines():
            change = json.loads(line)
            kind, value = change["key"], change["value"]
            if kind == "header":
                repository.commits.append(value["summary"])
            elif kind == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                repository.files[value["path"]] = self.server.large[value["oid"]]
            else:
                del repository.files[value["path"]]
        number = str(len(repository.commits))
        url = f"{self.server.url}/{name}/commit/{number}"
        self._answer({"commitUrl": url, "commitOid": number, "hookOutput": ""})

    def _content(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _welcome(self, needs_token: bool = True) -> bool:
        """Whether the request is answered; if not, it has been refused."""
        self.server.asked.append(f"{self.command} {self.path}")
        status = next((status for part, status in self.server.refuse.items() if part in self.path), 0)
        if needs_token and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 401
        if status:
            self._answer({"error": "refused"}, status)
        return not status

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


def _mode(path: str) -> str:
    return "lfs" if path.endswith((".safetensors", ".model")) else "regular"


def _named(path: str, content: bytes) -> dict[str, Any]:
    """Size and name of a content, as git and LFS name it."""
    if _mode(path) == "lfs":
        return {"size": len(content), "oid": hashlib.sha256(content).hexdigest()}
    return {"size": len(content), "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


@contextmanager
def running_hub(patched: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that this process and those it starts push to, by LFS alone."""
    hub = Hub()
    threading.Thread(target=hub.serve_forever, args=(0.01,), daemon=True).start()
    patched.setenv("HF_ENDPOINT", hub.url)
    patched.setenv("HF_TOKEN", TOKEN)
    patched.setenv("HF_HUB_DISABLE_XET", "1")
    patched.setattr("huggingface_hub.constants.ENDPOINT", hub.url)  # where the variables were read already
    patched.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
