"""The sandbox as processes: a local PostHog and a local Customer.io, started and ended together.

Nothing of it knows the caller's settings, proxies or credentials: each process has an environment made from nothing, and a
working directory without a `.env`, which Dagster would read.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path

import requests

from cio_pipeline.settings.envfile import SettingsError
from cio_pipeline.settings.places import PROJECT, base_folder, is_loopback

GRACE_SECONDS = 10
KEPT = ("PATH", "TMPDIR", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH")
"""What a process needs of the caller's environment to run at all."""


def sandbox_folder(name: str) -> Path:
    """`data/demo` and the like in a checkout. Elsewhere a folder of a name that is surely ours, for it is made anew."""
    base = base_folder()
    return base / "data" / name if base == PROJECT else base / f"cio_pipeline_{name}"


def empty_folder(folder: Path) -> None:
    """Makes the folder anew. Raises `SettingsError` if that cannot be done."""
    try:
        with suppress(FileNotFoundError):
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
    except OSError as error:
        raise SettingsError(
            f"The sandbox's folder {folder} cannot be made anew ({error.strerror}): run this in a checkout of your own."
        ) from None


def bare_environment(home: Path) -> dict[str, str]:
    """An environment made from nothing, with its home folder, and so its `.netrc`, in `home`."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "HOME": str(home), "PYTHONPATH": str(PROJECT)}


def local() -> requests.Session:
    """A session that asks this machine, whatever proxy or `.netrc` the caller has."""
    session = requests.Session()
    session.trust_env = False
    return session


@dataclass(frozen=True)
class Sandbox:
    """Where the two services listen."""

    posthog: str
    customerio: str

    def environment(self, data_dir: Path, start: date, **settings: str) -> dict[str, str]:
        """An environment made from nothing, with settings that name the sandbox, and no other settings than those given.

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
    """Both services, with generated PostHog events of so many days, until the block ends.

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
    """A Python module as a process of its own session, so that Ctrl-C reaches only us, ended with the block."""
    command = [sys.executable, "-m", module, *arguments]
    with tempfile.TemporaryDirectory(prefix="cio_pipeline_sandbox_") as folder:
        child = subprocess.Popen(  # noqa: S603
            command, stdout=subprocess.PIPE, text=True, start_new_session=True, cwd=folder, env=bare_environment(Path(folder))
        )
        try:
            yield child
        finally:
            end(child)


def end(child: subprocess.Popen[str]) -> None:
    """Asks a process of its own session to end, and sees that it does, and all that it has started."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):  # macOS says the latter of a group that is gone
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _address(child: subprocess.Popen[str]) -> str:
    """The URL at the end of the line that the service prints when it listens."""
    line = child.stdout.readline() if child.stdout else ""
    if "http://" not in line:
        raise RuntimeError(f"A sandbox process did not start: {child.args!r}")
    return line.rsplit(" ", 1)[-1].strip()
