"""The processes that a command starts, and requests to them."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import suppress

import requests

GRACE_SECONDS = 10


def local() -> requests.Session:
    """Returns a session for requests to this machine, which ignores the caller's proxy and `.netrc`."""
    session = requests.Session()
    session.trust_env = False
    return session


def end(child: subprocess.Popen[str]) -> None:
    """Ends a process that has a session of its own, and all processes that it has started."""
    child.terminate()
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError, PermissionError):  # macOS raises the latter if the group has ended
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
