"""The seconds, CPU and memory of a process with all that it starts, as they were at any time.

What a process uses in its last tenth of a second is not seen.
"""

from __future__ import annotations

import subprocess
import threading
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

EVERY_SECONDS = 0.1


@dataclass(frozen=True)
class Sample:
    """One look at the processes. at: seconds since 1970; cpu: seconds of all cores so far; memory: bytes of all of them."""

    at: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Used:
    """What was used between two times; memory is the most at once, in bytes."""

    seconds: float
    cpu: float
    memory: int


class Measured:
    """A process that has ended: its exit status, what it printed, and its samples in the order of time."""

    def __init__(self, status: int, output: str, samples: Sequence[Sample]) -> None:
        self.status, self.output, self._samples = status, output, samples

    @property
    def began(self) -> float:
        """When it was started, in seconds since 1970."""
        return self._samples[0].at

    @property
    def ended(self) -> float:
        """When it had ended, in seconds since 1970."""
        return self._samples[-1].at

    def between(self, start: float, end: float) -> Used:
        """What was used from one time to another."""
        memory = [one.memory for one in self._samples if start <= one.at <= end]
        return Used(end - start, self._cpu_at(end) - self._cpu_at(start), max(memory, default=0))

    def whole(self) -> Used:
        """What was used from its start to its end."""
        return self.between(self.began, self.ended)

    def _cpu_at(self, at: float) -> float:
        """The CPU seconds so far, between two samples in proportion to the time."""
        after = min(max(1, bisect_left(self._samples, at, key=lambda sample: sample.at)), len(self._samples) - 1)
        one, two = self._samples[after - 1], self._samples[after]
        share = (at - one.at) / (two.at - one.at) if two.at > one.at else 1.0
        return one.cpu + min(1.0, max(0.0, share)) * (two.cpu - one.cpu)


def run_measured(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> Measured:
    """Runs a command in a folder to its end, with nothing but that environment."""
    began = Sample(time.time(), 0.0, 0)
    child = psutil.Popen(
        command, env=dict(environment), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    samples, over = [began], threading.Event()
    sampler = threading.Thread(target=_sample, args=(child, samples, over))
    sampler.start()
    output, _ = child.communicate()
    over.set()
    sampler.join()
    samples.append(Sample(time.time(), samples[-1].cpu, 0))
    return Measured(child.returncode, output, samples)


def _sample(child: psutil.Process, samples: list[Sample], over: threading.Event) -> None:
    """Each process counts by what it had used when it was last seen: one that nobody waits for is in no parent's account."""
    used: dict[psutil.Process, float] = {}
    while not over.wait(EVERY_SECONDS):
        memory = 0
        with suppress(psutil.Error):
            for process in (child, *child.children(recursive=True)):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    used[process] = times.user + times.system
                    memory += _memory(process)
        samples.append(Sample(time.time(), sum(used.values()), memory))


def _memory(process: psutil.Process) -> int:
    """The process's memory; what it shares with others of them counts in parts, which add up to once (Linux)."""
    found = process.memory_full_info() if psutil.LINUX else process.memory_info()
    return int(getattr(found, "pss", found.rss))
