"""`make bench`: how long a day takes from a batch export's files to Customer.io's last acknowledgement, run as by `make run`.

The pipeline runs in a process of its own, with a clean environment and its data in a temporary folder. It is compared with
two plain senders (`bench/plain_sender.py`), and with the least that any pipeline does (`bench/floor.py`).
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
from bench.measure import MeasuredProcess, Usage, run_measured
from bench.pipeline import run_days, usage_by_stage
from bench.plain_sender import CLIENTS
from cio_pipeline.cli.processes import local
from cio_pipeline.sandbox.processes import bare_environment, process

MEBIBYTE = 1 << 20
SETTLE_SECONDS = 4
"""How old the files must be so that the second run knows that they have not changed, and does not read them again."""

SAMPLE_SECONDS = 4
"""How long a plain sender sends, about: it gets as many events as it needs for that, at 5,000 a second or its latency."""


def main() -> int:
    """Runs the benchmark for each of the sizes and latencies, and prints the figures."""
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--events", type=int, default=100_000, help="how many events the day has")
    parser.add_argument("--bytes", type=int, nargs="+", default=[600, 2_000], help="sizes of an event's properties")
    parser.add_argument("--latency", type=int, nargs="+", default=[0, 20], help="milliseconds that Customer.io takes to answer")
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}")
    summaries: list[str] = []
    for size in arguments.bytes:
        with tempfile.TemporaryDirectory(prefix="cio_pipeline_bench_") as folder:
            day = datetime.now(UTC).date() - timedelta(days=1)
            export = Path(folder) / "export"
            export.mkdir()
            write_day(export, datetime.combine(day, time(), UTC), arguments.events, size)
            sleep(SETTLE_SECONDS)
            summaries += [_compare(Path(folder), day, arguments.events, size, latency) for latency in arguments.latency]
    print("\n" + "\n\n".join(summaries))
    return 0


def _compare(folder: Path, day: date, events: int, size: int, latency: int) -> str:
    """Prints the table for one size and latency, and returns a summary that compares its rows."""
    title = f"{events:,} events of {size:,} bytes, {latency} ms per request"
    export, data = folder / "export", folder / f"{latency}"
    print(f"\n{title}\n{'':<24}{'seconds':>9}{'CPU s':>9}{'CPU us/event':>14}{'peak MiB':>10}{'requests':>10}")
    with _stand_in(latency) as url:
        first = run_days(day, day, export, data, url)
        received = _received(url)
        if received["events"] != events:
            raise RuntimeError(f"{received['events']:,} of {events:,} events arrived at Customer.io's stand-in.")
        stages = _print_run("first run", first, data, events, received)
        second = run_days(day, day, export, data, url)
        received_again = _received(url)
        _print_run("second run", second, data, events, received_again)
        sample = min(events, int(SAMPLE_SECONDS * (min(5_000, 5_000 / latency) if latency else 5_000)))
        plain = {}
        for client in CLIENTS:
            plain[client] = _run_baseline("bench.plain_sender", url, str(export), str(sample), client)
            _print_row(f"{client}, {sample:,}", plain[client], sample, _received(url)["requests"])
        floor = _run_baseline("bench.floor", url, str(export))
        _print_row("floor", floor, events, _received(url)["requests"])
    speed = events / first.usage().seconds
    plain_speeds = {client: sample / usage.seconds for client, usage in plain.items()}
    cpu = stages["derive"].cpu + stages["deliver"].cpu
    requests = received["requests"]
    return "\n".join(
        [
            f"{title}:",
            f"  {speed:,.0f} events a second",
            *(
                f"  {speed / plain_speed:.1f} times a plain sender with {client}: {plain_speed:,.0f}"
                for client, plain_speed in plain_speeds.items()
            ),
            f"  derive and deliver: {cpu / floor.cpu:.2f} times the floor's CPU",
            f"  second run: {second.usage().seconds / first.usage().seconds:.2f} times the first run's time,"
            f" {received_again.get('requests', 0)} requests",
            f"  {requests:,} requests of {received['bytes'] / max(1, requests):,.0f} bytes: a plain sender needs"
            f" {2 * events / requests:,.0f} times as many",
        ]
    )


@contextmanager
def _stand_in(latency: int) -> Iterator[str]:
    """The URL of Customer.io's stand-in, which runs in a process of its own until the block ends."""
    with process("bench.customerio", str(latency)) as running:
        assert running.stdout is not None  # noqa: S101
        yield running.stdout.readline().strip()


def _received(url: str) -> dict[str, int]:
    """What the stand-in has received since this was last called."""
    counts: dict[str, int] = local().get(f"{url}/counts", timeout=30).json()
    return counts


def _run_baseline(module: str, *arguments: str) -> Usage:
    """Runs what the pipeline is compared with. Seconds and CPU are without those of its start."""
    with tempfile.TemporaryDirectory() as home:
        ended = run_measured([sys.executable, "-m", module, *arguments], bare_environment(Path(home)), Path(home))
    if ended.status:
        raise RuntimeError(f"{module} ended with status {ended.status}:\n{ended.output}")
    clock = json.loads(ended.output)
    return Usage(clock["seconds"], clock["cpu"], ended.usage().memory)


def _print_run(name: str, run: MeasuredProcess, data: Path, events: int, received: Mapping[str, int]) -> dict[str, Usage]:
    """Prints a row for each stage of a run, and one for all of them, and returns the stages."""
    stages, requests = usage_by_stage(run, data), received.get("requests", 0)
    for stage, usage in stages.items():
        _print_row(f"{name}: {stage}", usage, events, {"start": received["checks"], "deliver": requests}.get(stage, 0))
    _print_row(f"{name}: total", run.usage(), events, received["checks"] + requests)
    return stages


def _print_row(label: str, usage: Usage, events: int, requests: int) -> None:
    print(
        f"{label:<24}{usage.seconds:>9.2f}{usage.cpu:>9.2f}{usage.cpu / events * 1e6:>14.1f}"
        f"{usage.memory / MEBIBYTE:>10,.0f}{requests:>10,}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
