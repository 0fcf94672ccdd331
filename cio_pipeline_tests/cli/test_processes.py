"""The processes that a command starts end with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from cio_pipeline.cli import processes

DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(20)"
PARENT = f"""
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN if sys.argv[1] == "deaf" else signal.SIG_DFL)
subprocess.Popen([sys.executable, "-c", {DEAF!r}])
print("started", flush=True)
time.sleep(20)
"""


@pytest.mark.parametrize(("parent", "ended_by"), [("deaf", signal.SIGKILL), ("obedient", signal.SIGTERM)])
def test_a_process_ends_with_all_that_it_started(
    parent: str, ended_by: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.5)
    command = [sys.executable, "-c", PARENT, parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "started\n"
        processes.end(started)
        began = time.monotonic()
        assert started.stdout.read() == "", "the child it started has the pipe, too, and holds it open while it lives"
        assert time.monotonic() - began < 10
    assert started.returncode == -ended_by
