"""Shards that several processes work on: results in order, bounded numbers in flight, and one sentence where a worker dies."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cio_pipeline.worker_pool import SHARDS_IN_THIS_PROCESS, WorkerDied, map_shards


def slow_first(number: int) -> tuple[int, int]:
    """The number, and the process that worked on it."""
    time.sleep(0.3 if number == 0 else 0)
    return number, os.getpid()


def killed(number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def on_sigterm(number: int) -> str:
    return "ends" if signal.getsignal(signal.SIGTERM) == signal.SIG_DFL else "goes on"


def failing(number: int) -> int:
    return 1 // (3 - number)


def tasks(number: int, begun: list[int]) -> Iterator[tuple[int]]:
    for task in range(number):
        begun.append(task)
        yield (task,)


def test_results_come_in_order_from_other_processes_and_few_are_in_flight() -> None:
    begun: list[int] = []
    found, ahead = [], []
    for number, process in map_shards(slow_first, tasks(12, begun), 12, 2, "numbers"):
        ahead.append(len(begun) - number)
        found.append((number, process))
    assert [number for number, _ in found] == list(range(12))
    assert os.getpid() not in {process for _, process in found}
    assert max(ahead) <= 3


@pytest.mark.parametrize(("number", "workers"), [(SHARDS_IN_THIS_PROCESS, 8), (12, 1)])
def test_few_shards_or_one_worker_start_no_process(number: int, workers: int) -> None:
    found = list(map_shards(slow_first, tasks(number, []), number, workers, "numbers"))
    assert {process for _, process in found} == {os.getpid()}


def test_a_worker_that_is_killed_ends_the_work_in_a_sentence() -> None:
    with pytest.raises(WorkerDied, match=r"^A worker process was ended from outside, .+ CIO_WORKERS\.$"):
        list(map_shards(killed, tasks(12, []), 12, 2, "numbers"))


def test_workers_obey_sigterm_even_if_their_parent_ignores_it() -> None:
    """By it the pool ends the others if one is killed. Python 3.13 would wait for them for ever."""
    program = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    program += "from cio_pipeline_tests.test_worker_pool import map_shards, on_sigterm, tasks\n"
    program += "print(set(map_shards(on_sigterm, tasks(12, []), 12, 2, 'numbers')))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "{'ends'}\n"


@pytest.mark.parametrize("given", [None, "1000"])
def test_workers_keep_the_memory_that_arrow_frees_unless_the_environment_says_otherwise(given: str | None) -> None:
    """In a process of its own, because there is only one fork server, which has its environment from its start."""
    program = "import os; from cio_pipeline.worker_pool import map_shards;"
    program += "print(set(map_shards(os.getenv, (('MIMALLOC_PURGE_DELAY',) for _ in range(12)), 12, 2, 'numbers')))"
    environment = {name: value for name, value in os.environ.items() if name != "MIMALLOC_PURGE_DELAY"}
    environment |= {} if given is None else {"MIMALLOC_PURGE_DELAY": given}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str({given or "-1"})


def test_what_fails_in_a_worker_is_raised_here() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_shards(failing, tasks(12, []), 12, 2, "numbers"))


PARENT = """
import os, time
from cio_pipeline.worker_pool import map_shards
from cio_pipeline_tests.test_worker_pool import slow_first
for number, process in map_shards(slow_first, ((n,) for n in range(1000)), 1000, 2, "numbers"):
    print(process, flush=True)
    time.sleep(100)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="whether a process lives is read from /proc")
def test_workers_end_with_a_parent_that_was_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = Path("/proc") / parent.stdout.readline().strip()
    assert worker.exists()
    parent.kill()
    parent.communicate()
    until = time.monotonic() + 30
    while worker.exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not worker.exists()


LOADS = "load_workers(2); print('begun', flush=True); time.sleep(30)"
STARTS = "print('begun', flush=True); list(map_shards(slow_first, ((n,) for n in range(1000)), 1000, 2, 'numbers'))"
INTERRUPTED = """
import signal
import time
signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored where a shell has started the tests in the background
from cio_pipeline.worker_pool import load_workers, map_shards
from cio_pipeline_tests.test_worker_pool import slow_first
try:
    {}
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize(("work", "seconds"), [(LOADS, 0.1), (STARTS, 0.3)])
def test_ctrl_c_before_any_worker_is_there_interrupts_only_their_parent(work: str, seconds: float) -> None:
    command = [sys.executable, "-c", INTERRUPTED.format(work)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "begun\n"
        time.sleep(seconds)
        os.killpg(parent.pid, signal.SIGINT)
        assert parent.stdout.read() == "interrupted\n", "no traceback of the fork server, or of a worker"


def test_no_worker_is_at_work_any_more_once_the_results_are_closed() -> None:
    results = map_shards(slow_first, tasks(12, []), 12, 2, "numbers")
    _, process = next(results)
    results.close()
    assert process not in {child.pid for child in multiprocessing.active_children()}
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_long_step_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr("cio_pipeline.worker_pool.EVERY_SECONDS", 0)
    list(map_shards(slow_first, tasks(2, []), 2, 1, "2026-03-02: derived"))
    assert re.fullmatch(r"2026-03-02: derived: 2 of 2 shards, [\d.]+ a second\.", caplog.messages[-1])
