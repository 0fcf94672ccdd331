"""`make bench-ledger`: how large a ledger grows, and how long its queries take.

The ids are made up. The ledger is in a temporary folder, or in the database that `--url` names, which must have no ledger yet.
"""

from __future__ import annotations

import argparse
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import closing
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import sqlalchemy as sa

from cio_pipeline.attribute_state import name_hash, pack, value_hash
from cio_pipeline.packed_ids import ULID_BYTES
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.database import connect
from cio_pipeline.state.ledger import Ledger

START = date(2026, 1, 1)
EVENTS_PER_REQUEST = 600
CUSTOMERS_PER_TRANSACTION, ATTRIBUTES_PER_CUSTOMER = 1_000, 8
CUSTOMERS_QUERIED = 10_000
FILL = "fill"
READ_EVENTS, READ_CUSTOMERS, DELETE = "events of a day", "states of customers", "requests of a day, deleted"
STEPS = (FILL, READ_EVENTS, READ_CUSTOMERS, DELETE)
"""Each runs in a process of its own."""


def main() -> int:
    """Fills a ledger, prints its size, and measures each query."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger")
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--events", type=int, default=10_000_000, help="per day")
    parser.add_argument("--customers", type=int, default=1_000_000)
    parser.add_argument("--url", help="the database; by default a SQLite file")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == FILL:
        _fill(Ledger(arguments.url), arguments.days, arguments.events, arguments.customers, arguments.url)
    elif arguments.step:
        _query(arguments.step, Ledger(arguments.url), _day(arguments.days // 2), arguments.customers)
    else:
        with tempfile.TemporaryDirectory(prefix="cio_pipeline_bench_") as folder:
            sizes = [f"--{name}={getattr(arguments, name)}" for name in ("days", "events", "customers")]
            options = [*sizes, f"--url={arguments.url or f'sqlite:///{folder}/ledger.db'}"]
            for step in STEPS:
                subprocess.run([sys.executable, "-m", "bench.ledger", *options, f"--step={step}"], check=True)
    return 0


def _fill(ledger: Ledger, days: int, events: int, customers: int, url: str) -> None:
    rng, empty = np.random.default_rng(1), _size(url)
    for start in range(0, customers, CUSTOMERS_PER_TRANSACTION):
        states = {key: _state(rng) for key in _keys(start, min(customers, start + CUSTOMERS_PER_TRANSACTION))}
        ledger.acknowledge(_day(0), Acknowledgement(customers=states))
    with_customers = _size(url)
    print(
        f"{customers:,} customers: {_gigabytes(with_customers - empty)}, {(with_customers - empty) / customers:.0f} bytes each"
    )
    for number in range(days):
        ids = _ids(rng, number, events)
        for start in range(0, len(ids), EVENTS_PER_REQUEST * ULID_BYTES):
            ledger.acknowledge(_day(number), Acknowledgement(event_ids=ids[start : start + EVENTS_PER_REQUEST * ULID_BYTES]))
    size = _size(url) - with_customers
    print(
        f"{days * events:,} events: {_gigabytes(size)}, {size / days / events:.1f} bytes each, of which {ULID_BYTES} are its id"
    )
    in_order = np.sort(np.frombuffer(ids, f"S{ULID_BYTES}")).tobytes()
    compressed = ", ".join(
        f"{len(zlib.compress(data)) / len(data):.0%} {order}" for data, order in ((ids, "in this order"), (in_order, "sorted"))
    )
    print(f"The last day's ids, compressed with zlib: {compressed}")


def _query(step: str, ledger: Ledger, day: str, customers: int) -> None:
    keys = _keys(0, customers)[:: max(1, customers // CUSTOMERS_QUERIED)][:CUSTOMERS_QUERIED]
    before, began, cpu = _peak_memory(), time.monotonic(), time.process_time()
    if step == READ_EVENTS:
        count = len(ledger.delivered(day))
    elif step == READ_CUSTOMERS:
        count = len(ledger.packed_states(keys))
    else:
        count = ledger.delete_before(_day(1))
    seconds, used = time.monotonic() - began, time.process_time() - cpu
    print(f"{step}: {count:,} in {seconds:.1f} s, {used:.1f} s of CPU, {_gigabytes(_peak_memory() - before)} more memory")


def _peak_memory() -> int:
    """The peak memory of this process, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _ids(rng: np.random.Generator, number: int, events: int) -> bytes:
    """The ids of a day's events as made from UUIDv7 (a time, then random bytes), joined in random order of time."""
    midnight = int(time.mktime((START + timedelta(days=number)).timetuple())) * 1000
    ids = rng.integers(0, 256, (events, ULID_BYTES), dtype=np.uint8)
    times = (midnight + rng.integers(0, 86_400_000, events)).astype(">u8")
    ids[:, :6] = times.view(np.uint8).reshape(-1, 8)[:, 2:]
    return ids.tobytes()


def _state(rng: np.random.Generator) -> bytes:
    """A customer's state: attributes that were set at two times, with values that no other customer has."""
    values = [value_hash(number.tobytes()) for number in rng.integers(0, 1 << 62, ATTRIBUTES_PER_CUSTOMER)]
    return pack({name_hash(str(index)): (value, 1_700_000_000 + index % 2) for index, value in enumerate(values)})


def _keys(first: int, last: int) -> list[str]:
    return [f"id:user-{number}" for number in range(first, last)]


def _day(number: int) -> str:
    return str(START + timedelta(days=number))


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _size(url: str) -> int:
    """The size of the database in bytes. SQLite's write-ahead log is moved into its file first."""
    engine = connect(url, sa.MetaData())
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0)
    with closing(sqlite3.connect(str(engine.url.database))) as sqlite:
        sqlite.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(str(engine.url.database)).stat().st_size


if __name__ == "__main__":
    sys.exit(main())
