"""The Prefect server of this process.

A command run by hand uses the server that the environment names. Without one it starts a temporary server, which does
not receive the terminal's signals and ends with the command. A server ends if its starter is killed.
"""

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import prefect
from prefect.context import FlowRunContext, get_settings_context
from prefect.logging import get_logger
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_HOME,
    PREFECT_SERVER_EPHEMERAL_ENABLED,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    get_current_settings,
    temporary_settings,
)

from lmcore.errors import ConfigError, LMError
from lmcore.signals import Terminated
from tasks.database import copy_before_upgrade, make_private

HOST = "127.0.0.1"
_EPHEMERAL = ["uvicorn", "--app-dir", str(Path(prefect.__file__).parents[1]), "--factory"]
_EPHEMERAL += ["prefect.server.api.server:create_app", "--host", HOST, "--log-level", "error", "--lifespan", "on"]
_TRIES = 3
_SECONDS_TO_ANSWER = 3
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_TO_END = 3


class Server:
    """A Prefect server on this machine, in a session of its own, and the process that ends it after us."""

    def __init__(
        self,
        command: list[str],
        port: int,
        settings: dict[str, str],
        output: IO[bytes] | None = None,
        outlives_us: int = 0,
    ) -> None:
        self.port = port
        self._command, self._settings, self._output, self._outlives_us = command, settings, output, outlives_us
        self._start()

    def _start(self) -> None:
        make_private()
        # The server must not ask on the terminal: nobody would see the question.
        self.process = subprocess.Popen(
            [sys.executable, "-m", *self._command],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            env=self._settings,
            start_new_session=True,
            umask=0o077,
        )
        self._tie = terminate_after_us(self.process.pid, self._outlives_us)

    def wait_until_healthy(self, seconds: float) -> None:
        """Wait until it answers. Raises LMError when it ends, or does not answer within ``seconds``."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise LMError(f"the Prefect server ended with status {self.process.returncode}{self._last_words()}")
            if not why_silent(f"http://{HOST}:{self.port}/api"):
                return
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        raise LMError(f"the Prefect server did not answer on port {self.port} within {seconds:.0f} s")

    def _last_words(self) -> str:
        if self._output is None:
            return "; its own output says why"
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").split("\n")
        return ": " + next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")

    def start_again_if_dead(self) -> int | None:
        """Start it again if it ended. Returns the status with which it ended; None if it lives."""
        status = self.process.poll()
        if status is not None:
            self._untie()
            self._start()
        return status

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL if it takes longer than a few seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(_SECONDS_TO_END)
        self._untie()

    def _untie(self) -> None:
        self._tie.kill()
        self._tie.communicate()


def terminate_after_us(pid: int, seconds: int = 0) -> "subprocess.Popen[bytes]":
    """A process that ends the process ``pid``, ``seconds`` after this one ended. Keep a reference to it.

    A shell waits for the end of a pipe that only this process holds. It sends SIGTERM, and SIGKILL ten seconds later: a
    server that ends waits for its clients, and they wait for it.
    """
    script = f"read -r _; sleep {seconds}; kill {pid} && sleep 10 && kill -9 {pid}"
    return subprocess.Popen(
        ["/bin/sh", "-c", f"{{ {script}; }} 2>/dev/null"], stdin=subprocess.PIPE, start_new_session=True
    )


def why_silent(url: str) -> str:
    """Why the API at ``url`` does not answer. Empty if it answers, even with an error."""
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=_SECONDS_TO_ANSWER):
            return ""
    except urllib.error.HTTPError as error:
        error.close()
        return ""
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))


@contextmanager
def reachable_server() -> Iterator[None]:
    """While the body runs, this process has a Prefect server: the configured one, that of its run, or a temporary one.

    Raises ConfigError when PREFECT_API_URL in the environment names a server that does not answer. A server that only
    a profile or a settings file names is ignored with a warning; it may be left from other work.
    """
    if FlowRunContext.get():
        yield
        return
    check_home()
    url = PREFECT_API_URL.value()
    if url and not (why := _why_silent_for_long(url)):
        yield
        return
    if url and os.environ.get("PREFECT_API_URL"):
        raise ConfigError(
            f"PREFECT_API_URL: the Prefect server {url} does not answer: {why}. Start it, or unset PREFECT_API_URL to "
            "use a temporary server"
        )
    if url:
        name = get_settings_context().profile.name
        get_logger("prefect").warning(
            f"the Prefect server {url} of the profile {name!r} does not answer: this run uses a temporary server"
        )
    own = temporary_settings({PREFECT_SERVER_EPHEMERAL_ENABLED: True}, restore_defaults={PREFECT_API_URL})
    with own, _temporary_server():
        yield


def _why_silent_for_long(url: str) -> str:
    for tries_left in reversed(range(_TRIES)):
        if not (why := why_silent(url)):
            return ""
        time.sleep(1 if tries_left else 0)
    return why


@contextmanager
def _temporary_server() -> Iterator[None]:
    """Prefect's temporary server, in a session of its own, with its output kept for errors."""
    from prefect.server.api.server import SubprocessASGIServer  # takes seconds

    known = SubprocessASGIServer()
    if known.running:
        yield
        return
    if copied := copy_before_upgrade():
        get_logger("prefect").warning(copied)
    get_logger("prefect").info("starting a temporary Prefect server")
    port = free_port()
    with tempfile.TemporaryFile() as output:
        server = Server([*_EPHEMERAL, "--port", str(port)], port, _ephemeral_settings(), output)
        # After Prefect's own exit handlers, which still send logs and events to it.
        atexit.register(server.stop)
        try:
            server.wait_until_healthy(PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
            # Prefect asks this object before it starts a server, and finds that one runs.
            known.port, known.server_process, known.running = port, server.process, True
            yield
        except (KeyboardInterrupt, Terminated):
            server.stop()  # there are no exit handlers then
            known.running = False
            raise


def _ephemeral_settings() -> dict[str, str]:
    marks = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
    return {**os.environ, **marks, **get_current_settings().to_environment_variables(exclude_unset=True)}


def free_port() -> int:
    """A TCP port of this machine that nobody uses now."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])


def check_home() -> None:
    """Raise ConfigError if PREFECT_HOME cannot be written."""
    home = PREFECT_HOME.value()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=home):
            pass
    except OSError as error:
        raise ConfigError(f"PREFECT_HOME: {home} cannot be written ({error.strerror}): name another folder") from None
