"""`make ui`: Dagster's UI and daemon on what the environment and `.env` name, until Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from cio_pipeline.sandbox.processes import end
from cio_pipeline.settings.places import PROJECT, dagster_home, shown
from cio_pipeline.settings.settings import load_settings

FIRST_PORT = 3000


def ui() -> int:
    """`dagster dev` with the environment wherever it and `.env` differ. Raises `SettingsError` where a setting is wrong."""
    settings = load_settings()
    home = dagster_home(settings.data_dir)
    if not (home / "dagster.yaml").exists():
        shutil.copy(PROJECT / "dagster.yaml", home)
    paths = (str(PROJECT), os.environ.get("PYTHONPATH", ""))
    named = {"DAGSTER_HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    print(
        f"Sends to {shown(settings.tracking_url)}; the tables are in {shown(settings.data_dir)}, Dagster's runs in {home}.",
        flush=True,
    )
    try:
        return dagster_dev(home, {**os.environ, **named})
    except KeyboardInterrupt:
        return 0


def dagster_dev(home: Path, environment: dict[str, str]) -> int:
    """`dagster dev`, in a working directory where it finds no `.env`; what it writes is its owner's alone.

    Raises `KeyboardInterrupt` on Ctrl-C or SIGTERM, when all of it has ended.
    """
    interruptible()
    port = str(free_port())
    print(f"Dagster UI:  http://127.0.0.1:{port}", flush=True)
    command = [sys.executable, "-m", "dagster", "dev", "-w", str(PROJECT / "workspace.yaml"), "-h", "127.0.0.1", "-p", port]
    os.umask(0o077)
    child = subprocess.Popen(command, env=environment, cwd=home, text=True, start_new_session=True)  # noqa: S603
    try:
        return child.wait()
    finally:
        end(child)


def interruptible() -> None:
    """SIGTERM ends this process as Ctrl-C does, with all that it has started."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _stop)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def free_port() -> int:
    """3000, or the next port that nobody listens on."""
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return port
    raise RuntimeError(f"No free port from {FIRST_PORT} on.")
