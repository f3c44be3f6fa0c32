"""Who ends with whom: servers and flows whose starter was killed do not live on unseen, and a cancel is not lost."""

import os
import subprocess
import sys
import threading
from functools import cache

from prefect.exceptions import TerminationSignal
from prefect.runtime import deployment

from lmcore.launch import end_with_parent

_SECONDS_TO_LEAVE = 0.05
"""A destructor or a callback."""


def terminate_after_us(pid: int, seconds: int = 0) -> "subprocess.Popen[bytes]":
    """Have the process ``pid`` ended, ``seconds`` after this one ended, however that happens; keep what is returned.

    A shell of its own waits for the end of a pipe that only we hold. SIGTERM comes first, SIGKILL ten seconds later:
    a server that is to end waits for its clients, and they for it.
    """
    script = f"read -r _; sleep {seconds}; kill {pid} && sleep 10 && kill -9 {pid}"
    return subprocess.Popen(
        ["/bin/sh", "-c", f"{{ {script}; }} 2>/dev/null"], stdin=subprocess.PIPE, start_new_session=True
    )


@cache
def tie_ends() -> "subprocess.Popen[bytes] | None":
    """End a temporary server of this process with it, and the run of a deployment with the one that serves it.

    Prefect stops its temporary server at exit, which ``kill -9`` leaves out; and a run whose server of deployments is
    gone could be neither cancelled nor found.
    """
    if deployment.id:
        end_with_parent(os.getppid())
    module = sys.modules.get("prefect.server.api.server")  # loaded by whoever needed it: it takes seconds
    server = module.SubprocessASGIServer().server_process if module else None
    return terminate_after_us(server.pid) if server else None


@cache
def keep_terminations() -> None:
    """Send a signal to end this process again where Python lost it.

    Prefect's handler raises an exception in whatever runs: where that is a destructor or the callback of a weak
    reference, of which importing torch alone has thousands, Python prints the exception and goes on.
    """
    usual = sys.unraisablehook

    def hook(lost: "sys.UnraisableHookArgs") -> None:
        if isinstance(lost.exc_value, TerminationSignal):
            # A little later and from elsewhere, else it would be raised in here and be lost as well.
            threading.Timer(_SECONDS_TO_LEAVE, os.kill, (os.getpid(), lost.exc_value.signal)).start()
        else:
            usual(lost)

    sys.unraisablehook = hook
