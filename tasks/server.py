"""The temporary server that Prefect starts for a flow where none is configured."""

import subprocess
import sys
from functools import cache


@cache
def end_server_with_us() -> "subprocess.Popen[bytes] | None":
    """Let the temporary server of this process, if it has one, end when this process does, however that happens.

    Prefect stops it at exit, which ``kill -9`` leaves out. A shell waits for the end of a pipe that only we hold.
    """
    module = sys.modules.get("prefect.server.api.server")  # loaded by whoever needed it: it takes seconds
    server = module.SubprocessASGIServer().server_process if module else None
    if server is None:
        return None
    command = ["/bin/sh", "-c", f"read -r _; kill {server.pid}"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
