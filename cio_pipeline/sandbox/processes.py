"""The sandbox as processes: a local PostHog and a local Customer.io, started and ended together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import date
from pathlib import Path

GRACE_SECONDS = 10


@dataclass(frozen=True)
class Sandbox:
    """Where the two services listen."""

    posthog: str
    customerio: str

    def environment(self, data_dir: Path, start: date, **settings: str) -> dict[str, str]:
        """An environment whose settings name the sandbox, and no other settings than those given."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CIO_", "CUSTOMERIO_", "POSTHOG_"))}
        return kept | {
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
    """Both services, with generated PostHog events of so many days, until the block ends."""
    with ExitStack() as running:
        posthog = running.enter_context(
            process("cio_pipeline.sandbox.posthog", "--start", start.isoformat(), "--days", str(days))
        )
        customerio = running.enter_context(process("cio_pipeline.sandbox.customerio"))
        yield Sandbox(_address(posthog), _address(customerio))


@contextmanager
def process(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python module as a process of its own session, so that Ctrl-C reaches only us, ended with the block."""
    command = [sys.executable, "-m", module, *arguments]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)  # noqa: S603
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
        raise RuntimeError(f"A sandbox process did not start: {' '.join(map(str, child.args))}")  # type: ignore[arg-type]
    return line.rsplit(" ", 1)[-1].strip()
