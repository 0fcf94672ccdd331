"""`make ui`: Dagster's UI and daemon with the settings of the environment and `.env`, until Ctrl-C."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from cio_pipeline.cli.processes import end, local
from cio_pipeline.cli.terminal import show
from cio_pipeline.settings.environment import KEEP_ENGINES
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.load import load_settings
from cio_pipeline.settings.places import DAGSTER_YAML, PROJECT, WORKSPACE_YAML, dagster_home, redacted

FIRST_PORT = 3000
MAX_PORTS = 100
"""The number of ports that are tried, from the first on."""

SUPERSEDED = "ignore:Function `dev_command` is superseded"
"""A filter of Python's warnings, for Dagster's advice to use `dg dev` instead, which needs another layout of the project."""


def ui() -> int:
    """Runs `dagster dev` with the settings; the environment wins over `.env`. Raises `SettingsError` if a setting is wrong."""
    settings = load_settings()
    home = dagster_home(settings.data_dir)
    if not (home / "dagster.yaml").exists():
        shutil.copy(DAGSTER_YAML, home)
    elif "managed_python_loggers" not in (home / "dagster.yaml").read_text():
        show(f"{home}/dagster.yaml has no python_logs, so the runs' logs lack what the pipeline logs: see docs/operations.md.")
    paths = (str(PROJECT), os.environ.get("PYTHONPATH", ""))
    named = {"DAGSTER_HOME": str(home), "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    tables_in = redacted(settings.data_dir)
    show(f"Sends to {redacted(settings.tracking_url)}; the tables are in {tables_in}, Dagster's runs in {home}.")
    try:
        with only_one(home):
            return dagster_dev(home, {**os.environ, **settings.places, **named})
    except KeyboardInterrupt:
        show("Dagster has ended.")
        return 0


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Locks Dagster's home for the block. Raises `SettingsError` if another UI uses it, because a second daemon would run
    everything twice."""
    with (home / "ui.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SettingsError(f"Dagster's UI and daemon are already running on {home}: end them first (Ctrl-C).") from None
        yield


def dagster_dev(home: Path, environment: dict[str, str]) -> int:
    """Runs `dagster dev`, in a working directory without `.env`. What it writes is readable by its owner only.

    Dagster's own output is limited to warnings. Once the UI answers, its address is printed. Raises `KeyboardInterrupt` on
    Ctrl-C or SIGTERM, once everything has ended, and `SettingsError` if no port is free.
    """
    interruptible()
    port = str(free_port())
    python = [sys.executable, "-W", SUPERSEDED, "-m", "dagster"]
    command = [*python, "dev", "-w", str(WORKSPACE_YAML), "-h", "127.0.0.1", "-p", port, "--log-level", "warning"]
    os.umask(0o077)
    child = subprocess.Popen(command, env={**environment, KEEP_ENGINES: "yes"}, cwd=home, text=True, start_new_session=True)  # noqa: S603
    try:
        while child.poll() is None and not _answers(f"http://127.0.0.1:{port}/server_info"):
            time.sleep(0.5)
        if child.poll() is None:
            show(f"Dagster UI:  http://127.0.0.1:{port}")
        return child.wait()
    finally:
        end(child)


def _answers(url: str) -> bool:
    try:
        return local().get(url, timeout=5).ok
    except requests.RequestException:
        return False


def interruptible() -> None:
    """Makes SIGTERM end this process, and all that it has started, like Ctrl-C."""
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, _stop)


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def free_port() -> int:
    """Returns 3000, or the next free port. Raises `SettingsError` if there is none."""
    last = FIRST_PORT + MAX_PORTS - 1
    for port in range(FIRST_PORT, last + 1):
        if _is_free(port):
            return port
    raise SettingsError(f"No port from {FIRST_PORT} to {last} is free for the UI: end a program that listens on one.")


def _is_free(port: int) -> bool:
    """Returns whether nothing listens on the port, on any address, and it can be used."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if not probe.connect_ex(("127.0.0.1", port)):
            return False
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
