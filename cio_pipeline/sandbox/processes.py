"""Starts and ends the sandbox's processes: a local PostHog and a local Customer.io.

None of them knows the caller's settings, proxies or credentials: each has a new environment, and a working directory without a
`.env`, which Dagster would read.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from cio_pipeline.cli.processes import end
from cio_pipeline.settings.errors import SettingsError
from cio_pipeline.settings.places import PROJECT, base_folder, is_loopback

INHERITED = ("PATH", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""The variables that a process needs from the caller's environment to run at all."""


def sandbox_folder(name: str) -> Path:
    """Returns `data/{name}` in a checkout. Elsewhere, the name says whose folder it is, as it is emptied at each start."""
    base = base_folder()
    return base / "data" / name if base == PROJECT else base / f"cio_pipeline_{name}"


def empty_folder(folder: Path) -> None:
    """Empties the folder, or creates it. Raises `SettingsError` if that fails."""
    try:
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise SettingsError(
            f"The sandbox's folder {folder} cannot be emptied ({error.strerror}): run this in a checkout of your own."
        ) from None


def bare_environment(home: Path) -> dict[str, str]:
    """Returns a new environment whose home folder, where a `.netrc` would be, is `home`."""
    inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
    return {**inherited, "HOME": str(home), "PYTHONPATH": str(PROJECT)}


@dataclass(frozen=True)
class Sandbox:
    """The URLs of the two services."""

    posthog: str
    customerio: str

    def environment(self, data_dir: Path, start: date, **settings: str) -> dict[str, str]:
        """Returns a new environment with the sandbox's settings, and the given ones.

        Raises `SettingsError` if a service is not on this machine.
        """
        if away := [address for address in (self.posthog, self.customerio) if not is_loopback(address)]:
            raise SettingsError(f"{away[0]} is refused: the sandbox reads and sends on this machine only.")
        return bare_environment(data_dir) | {
            "CIO_SANDBOX": "Yes",
            "POSTHOG_HOST": self.posthog,
            "POSTHOG_PROJECT_ID": "1",
            "POSTHOG_PERSONAL_API_KEY": "phx_sandbox",
            "CUSTOMERIO_TRACKING_ENDPOINT": self.customerio,
            "CUSTOMERIO_SITE_ID": "sandbox",
            "CUSTOMERIO_API_KEY": "sandbox-key",
            "CIO_START_DATE": start.isoformat(),
            "CIO_DATA_DIR": str(data_dir),
            **settings,
        }


@contextmanager
def sandbox(start: date, days: int) -> Iterator[Sandbox]:
    """Runs both services until the block ends; PostHog has generated events of so many days.

    Raises `SettingsError` if the libraries that only they need are not installed.
    """
    if missing := [library for library in ("duckdb", "sqlglot") if find_spec(library) is None]:
        raise SettingsError(f"The sandbox needs {' and '.join(missing)}: install the extra, cio_pipeline[sandbox].")
    with ExitStack() as running:
        posthog = running.enter_context(
            process("cio_pipeline.sandbox.posthog.server", "--start", start.isoformat(), "--days", str(days))
        )
        customerio = running.enter_context(process("cio_pipeline.sandbox.customerio.server"))
        yield Sandbox(_address(posthog), _address(customerio))


@contextmanager
def process(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Runs a Python module until the block ends, in a session of its own, so that Ctrl-C reaches only this process."""
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryDirectory(prefix="cio_pipeline_sandbox_") as folder:
        child = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=folder, env=bare_environment(Path(folder))
        )
        try:
            yield child
        finally:
            end(child)


def _address(child: subprocess.Popen[str]) -> str:
    """The URL at the end of the line that a service prints when it is ready."""
    line = child.stdout.readline() if child.stdout else ""
    if "http://" not in line:
        raise RuntimeError(f"A sandbox process did not start: {child.args!r}")
    return line.rsplit(" ", 1)[-1].strip()
