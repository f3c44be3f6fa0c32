"""Who ends with whom: servers and flows whose starter was killed do not live on unseen."""

import os
import subprocess
import sys
from functools import cache

from prefect.runtime import deployment

from lmcore.launch import end_with_parent


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
