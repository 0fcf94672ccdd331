"""`make bench`: a day from a batch export's files to Customer.io's last acknowledgement, as `make run` does it, in figures.

The pipeline runs in a process of its own, with an environment made from nothing and its data in a temporary folder. In the
same run it is compared with a plain sender and with the least that any pipeline does (`bench/floor.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from time import sleep

from bench.events import write_day
from bench.measure import Measured, Used, run_measured
from bench.pipeline import run_days, stages_of
from cio_pipeline.sandbox.processes import bare_environment, local, process

MEBIBYTE = 1 << 20
SAMPLE_SECONDS = 4
"""The plain sender gets as many events as it sends in so long: about 8,000 a second, or by its latency."""


def main() -> int:
    """Measures what the arguments ask for, and prints it."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--events", type=int, default=100_000, help="how many events the day has")
    parser.add_argument("--bytes", type=int, nargs="+", default=[600, 2_000], help="sizes of an event's properties")
    parser.add_argument("--latency", type=int, nargs="+", default=[0, 20], help="milliseconds that Customer.io takes to answer")
    given = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    ratios: list[str] = []
    for size in given.bytes:
        with tempfile.TemporaryDirectory(prefix="cio_pipeline_bench_") as folder:
            day = datetime.now(UTC).date() - timedelta(days=1)
            export = Path(folder) / "export"
            export.mkdir()
            write_day(export, datetime.combine(day, time(), UTC), given.events, size)
            sleep(4)  # files that were written just now are not known to be whole, and would be read again
            ratios += [_compare(Path(folder), day, given.events, size, latency) for latency in given.latency]
    print("\n" + "\n\n".join(ratios))
    return 0


def _compare(folder: Path, day: date, events: int, size: int, latency: int) -> str:
    """Prints the table of one kind of day; gives its ratios."""
    name = f"{events:,} events of {size:,} bytes, {latency} ms a request"
    export, data = folder / "export", folder / f"{latency}"
    print(f"\n{name}\n{'':<24}{'seconds':>9}{'CPU s':>9}{'us/event':>10}{'peak MiB':>10}{'requests':>10}")
    with _stand_in(latency) as url:
        first = run_days(day, day, export, data, url)
        came = _counts(url)
        _refuse_loss(came, events)
        stages = _print_run("all of the day", first, data, events, came)
        again = run_days(day, day, export, data, url)
        came_again = _counts(url)
        _print_run("the same day again", again, data, events, came_again)
        sample = min(events, int(SAMPLE_SECONDS * (min(8_000, 5_000 / latency) if latency else 8_000)))
        plain = _other("bench.plain_sender", url, str(export), str(sample))
        _print(f"plain sender, {sample:,}", plain, sample, _counts(url)["requests"])
        floor = _other("bench.floor", url, str(export))
        _print("floor", floor, events, _counts(url)["requests"])
    speed, plain_speed = events / first.whole().seconds, sample / plain.seconds
    working = stages["derive"].cpu + stages["deliver"].cpu
    return "\n".join(
        [
            f"{name}:",
            f"  {speed:,.0f} events a second, {speed / plain_speed:.1f} times the plain sender's {plain_speed:,.0f}",
            f"  derive and deliver: {working / floor.cpu:.2f} times the floor's CPU",
            f"  the same day again: {again.whole().seconds / first.whole().seconds:.2f} of its first time,"
            f" {came_again.get('requests', 0)} requests that send",
            f"  {came['requests']:,} requests of {came['bytes'] / max(1, came['requests']):,.0f} bytes; the plain sender needs"
            f" {2 * events / came['requests']:,.0f} times as many",
        ]
    )


@contextmanager
def _stand_in(latency: int) -> Iterator[str]:
    """The URL of Customer.io's stand-in, in a process of its own until the block ends."""
    with process("bench.customerio", str(latency)) as running:
        assert running.stdout is not None  # noqa: S101
        yield running.stdout.readline().strip()


def _counts(url: str) -> dict[str, int]:
    """What came to the stand-in since this was asked last."""
    found: dict[str, int] = local().get(f"{url}/counts", timeout=30).json()
    return found


def _refuse_loss(came: dict[str, int], events: int) -> None:
    if came["events"] != events:
        raise RuntimeError(f"{came['events']:,} of {events:,} events arrived at Customer.io's stand-in.")


def _other(module: str, *arguments: str) -> Used:
    """Runs what the pipeline is compared with. Its own start does not count."""
    with tempfile.TemporaryDirectory() as home:
        found = run_measured([sys.executable, "-m", module, *arguments], bare_environment(Path(home)), Path(home))
    if found.status:
        raise RuntimeError(f"{module} ended with status {found.status}:\n{found.output}")
    clock = json.loads(found.output)
    return Used(clock["seconds"], clock["cpu"], found.whole().memory)


def _print_run(what: str, measured: Measured, data: Path, events: int, came: Mapping[str, int]) -> dict[str, Used]:
    """Prints the stages of a run, and what they add up to; gives the stages."""
    stages, requests = stages_of(measured, data), came.get("requests", 0)
    for stage, used in stages.items():
        _print(stage, used, events, {"start": came["checks"], "deliver": requests}.get(stage, 0))
    _print(what, measured.whole(), events, came["checks"] + requests)
    return stages


def _print(what: str, used: Used, events: int, requests: int) -> None:
    print(
        f"{what:<24}{used.seconds:>9.2f}{used.cpu:>9.2f}{used.cpu / events * 1e6:>10.1f}"
        f"{used.memory / MEBIBYTE:>10,.0f}{requests:>10,}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
