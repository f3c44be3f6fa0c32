"""Prefect flows: which stage comes when.

The settings below are defaults for a machine where nothing is configured; they must be set before
Prefect is imported. The embedded server's first start, with its migrations, outlasts Prefect's own time-out.
"""

import os

from tasks.logs import quiet_prefect

os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT", "false")
os.environ.setdefault("PREFECT_FLOWS_HEARTBEAT_FREQUENCY", "60")

quiet_prefect()
