"""`make dev`: the Dagster UI on the sandbox, until Ctrl-C."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from cio_pipeline.sandbox.processes import end, sandbox

DAYS = 10
FOLDER = Path("data/dev")
FIRST_PORT = 3000


def dev() -> int:
    """Runs both services and `dagster dev` on the last ten days; ends all of them on Ctrl-C or SIGTERM."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _stop)
    home = FOLDER / "dagster"
    shutil.rmtree(FOLDER, ignore_errors=True)
    home.mkdir(parents=True)
    shutil.copy("dagster.yaml", home)
    start = datetime.now(timezone.utc).date() - timedelta(days=DAYS)
    try:
        with sandbox(start, DAYS) as services:
            environment = services.environment(FOLDER.absolute(), start, DAGSTER_HOME=str(home.absolute()))
            port = str(_free_port())
            print(
                f"Dagster UI:  http://127.0.0.1:{port}\nPeople page: {services.customerio}\nPostHog:     {services.posthog}",
                flush=True,
            )
            command = [sys.executable, "-m", "dagster", "dev", "-w", "workspace.yaml", "-h", "127.0.0.1", "-p", port]
            child = subprocess.Popen(command, env=environment, text=True, start_new_session=True)  # noqa: S603
            try:
                return child.wait()
            finally:
                end(child)
    except KeyboardInterrupt:
        return 0


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def _free_port() -> int:
    """3000, or the next port that nobody listens on."""
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError(f"No free port from {FIRST_PORT} on.")
