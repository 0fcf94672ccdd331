"""What a process of the benchmark says of itself: the time of its work, without that of its start."""

from __future__ import annotations

import json
import time


class Clock:
    """Begins when it is made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def report(self) -> None:
        """Prints the seconds, and those of all cores, as one line of JSON."""
        print(json.dumps({"seconds": time.monotonic() - self._wall, "cpu": time.process_time() - self._cpu}))
