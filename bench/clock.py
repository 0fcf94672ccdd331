"""Measures the work of one process of the benchmark, without the time that it needs to start."""

from __future__ import annotations

import json
import time


class Clock:
    """Runs from when it is created."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def report(self) -> None:
        """Prints the elapsed seconds and the CPU seconds as one line of JSON: `seconds` and `cpu`."""
        print(json.dumps({"seconds": time.monotonic() - self._wall, "cpu": time.process_time() - self._cpu}))
