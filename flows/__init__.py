"""Prefect flows: which stage comes when.

The settings below are defaults for a machine where nothing is configured. They hold whether Prefect was imported before
or not. The embedded server's first start, with its migrations, outlasts Prefect's own time-out.
"""

import os
import sys
import warnings

from tasks.logs import quiet_prefect

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT", "false")
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "60")
# What lmcore logs during a run stands in the log of the run. Outside of a run it goes to the terminal only.
os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "lmcore")
os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
# tasks.server says so as an error, in one line.
warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")
# A proxy is for other machines: what listens on this one is asked directly.
_hosts = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
os.environ["NO_PROXY"] = os.environ["no_proxy"] = ",".join(filter(None, [_hosts, "127.0.0.1", "localhost", "::1"]))
if "prefect" in sys.modules:  # which has read its settings already
    from prefect.context import refresh_global_settings_context

    refresh_global_settings_context()

quiet_prefect()
