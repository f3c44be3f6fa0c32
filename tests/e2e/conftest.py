"""One served pipeline for all tests here: a real server with a password, deployments, and somebody who is told."""

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

from tests.serving import Serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PASSWORD = "somebody:secret"


class Listener:
    """A web server on loopback that keeps what is posted to it."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        heard = self.heard

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # http.server's name
                heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def of(self, what: str, run: str = "") -> list[dict[str, Any]]:
        """Of one run, or of all."""
        return [notice for notice in self.heard if notice["what"] == what and run in ("", notice.get("run"))]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="session")
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


@pytest.fixture(scope="session")
def serving(tmp_path_factory: pytest.TempPathFactory, listener: Listener) -> Iterator[Serving]:
    serving = Serving(
        tmp_path_factory.mktemp("home"),
        LM_NOTIFY_URL=listener.url,
        PREFECT_SERVER_API_AUTH_STRING=PASSWORD,
        PREFECT_API_AUTH_STRING=PASSWORD,
        PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2",
        PREFECT_RUNNER_POLL_FREQUENCY="1",
    )
    try:
        serving.wait()
        yield serving
    finally:
        left = serving.stop()
        print(serving.log.read_text())
    assert not left


_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Of one file: while it is open its event loop runs in this thread, and Prefect's functions called here answer with
    coroutines."""
    from playwright.sync_api import expect, sync_playwright

    from tests.e2e.ui import SECONDS

    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser is here ({', '.join(_BROWSERS)}): apt-get install chromium")
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_QUIET)
        yield browser
        browser.close()
