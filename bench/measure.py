"""Measures the time, CPU and memory of a process together with all that it starts, overall or between any two times.

What a process uses in its last tenth of a second is missed.
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

SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Sample:
    """All processes at one time.

    time: seconds since 1970; cpu: seconds of all cores so far; memory: bytes.
    """

    time: float
    cpu: float
    memory: int


@dataclass(frozen=True)
class Usage:
    """What was used between two times: elapsed seconds, CPU seconds of all cores, and the peak memory in bytes."""

    seconds: float
    cpu: float
    memory: int


class MeasuredProcess:
    """A process that has ended: its exit status, what it printed, and the samples of its usage in order of time."""

    def __init__(self, status: int, output: str, samples: Sequence[Sample]) -> None:
        self.status, self.output, self._samples = status, output, samples

    @property
    def started(self) -> float:
        """When it was started, in seconds since 1970."""
        return self._samples[0].time

    def usage(self) -> Usage:
        """Returns what was used from its start to its end."""
        return self.usage_between(self.started, self._samples[-1].time)

    def usage_between(self, start: float, end: float) -> Usage:
        """Returns what was used between two times, in seconds since 1970."""
        memory = [sample.memory for sample in self._samples if start <= sample.time <= end]
        return Usage(end - start, self._cpu_until(end) - self._cpu_until(start), max(memory, default=0))

    def _cpu_until(self, time: float) -> float:
        """The CPU seconds until then, interpolated between two samples."""
        index = min(max(1, bisect_left(self._samples, time, key=lambda sample: sample.time)), len(self._samples) - 1)
        before, after = self._samples[index - 1], self._samples[index]
        share = (time - before.time) / (after.time - before.time) if after.time > before.time else 1.0
        return before.cpu + min(1.0, max(0.0, share)) * (after.cpu - before.cpu)


def run_measured(command: Sequence[str], environment: Mapping[str, str], folder: Path) -> MeasuredProcess:
    """Runs a command in a folder until it ends. It gets no environment variables but these."""
    first = Sample(time.time(), 0.0, 0)
    child = psutil.Popen(
        command, env=dict(environment), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    samples, ended = [first], threading.Event()
    sampler = threading.Thread(target=_sample, args=(child, samples, ended))
    sampler.start()
    output, _ = child.communicate()
    ended.set()
    sampler.join()
    samples.append(Sample(time.time(), samples[-1].cpu, 0))
    return MeasuredProcess(child.returncode, output, samples)


def _sample(child: psutil.Process, samples: list[Sample], ended: threading.Event) -> None:
    """Adds samples until the process has ended. Processes that have ended before count with the CPU that they had used when
    last seen, since the system does not add it to the parent's if the parent does not wait for them."""
    cpu: dict[psutil.Process, float] = {}
    while not ended.wait(SAMPLE_SECONDS):
        memory = 0
        with suppress(psutil.Error):
            for process in (child, *child.children(recursive=True)):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    cpu[process] = times.user + times.system
                    memory += _memory(process)
        samples.append(Sample(time.time(), sum(cpu.values()), memory))


def _memory(process: psutil.Process) -> int:
    """The bytes of a process. On Linux, memory that several processes share is divided among them."""
    info = process.memory_full_info() if psutil.LINUX else process.memory_info()
    return int(getattr(info, "pss", info.rss))
