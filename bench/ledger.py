"""How large a ledger grows and how long its look-ups take: `make bench-ledger`, with made-up ids in a temporary folder.

Or in a database that `--url` names, which must have no ledger yet.
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
from cio_pipeline.state.database import connect
from cio_pipeline.state.ledger import Acknowledgement, Ledger

START = date(2026, 1, 1)
TO_A_REQUEST = 600
CUSTOMERS_AT_ONCE, ATTRIBUTES = 1_000, 8
LOOKED_UP = 10_000
MAKE = "make"
OF_A_DAY, OF_CUSTOMERS, FORGET = "a day's events", "customers' states", "requests of a day that is deleted"
STEPS = (MAKE, OF_A_DAY, OF_CUSTOMERS, FORGET)
"""Each in a process of its own."""


def main() -> int:
    """Makes the ledger, prints its size, and measures each look-up."""
    parser = argparse.ArgumentParser(prog="python -m bench.ledger")
    parser.add_argument("--days", type=int, default=100)
    parser.add_argument("--events", type=int, default=10_000_000, help="of a day")
    parser.add_argument("--customers", type=int, default=1_000_000)
    parser.add_argument("--url", help="the database; by default a SQLite file")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step == MAKE:
        _make(Ledger(given.url), given.days, given.events, given.customers, given.url)
    elif given.step:
        _look_up(given.step, Ledger(given.url), _day(given.days // 2), given.customers)
    else:
        with tempfile.TemporaryDirectory(prefix="cio_pipeline_bench_") as folder:
            sizes = [f"--{name}={getattr(given, name)}" for name in ("days", "events", "customers")]
            of = [*sizes, f"--url={given.url or f'sqlite:///{folder}/ledger.db'}"]
            for step in STEPS:
                subprocess.run([sys.executable, "-m", "bench.ledger", *of, f"--step={step}"], check=True)
    return 0


def _make(ledger: Ledger, days: int, events: int, customers: int, url: str) -> None:
    rng, empty = np.random.default_rng(1), _size(url)
    for start in range(0, customers, CUSTOMERS_AT_ONCE):
        states = {key: _state(rng) for key in _keys(start, min(customers, start + CUSTOMERS_AT_ONCE))}
        ledger.acknowledge(_day(0), Acknowledgement(customers=states))
    with_customers = _size(url)
    print(
        f"{customers:,} customers: {_gigabytes(with_customers - empty)}, {(with_customers - empty) / customers:.0f} bytes each"
    )
    for number in range(days):
        ids = _ids(rng, number, events)
        for start in range(0, len(ids), TO_A_REQUEST * ULID_BYTES):
            ledger.acknowledge(_day(number), Acknowledgement(event_ids=ids[start : start + TO_A_REQUEST * ULID_BYTES]))
    size = _size(url) - with_customers
    print(
        f"{days * events:,} events: {_gigabytes(size)}, {size / days / events:.1f} bytes each, of which {ULID_BYTES} are its id"
    )
    in_order = np.sort(np.frombuffer(ids, f"S{ULID_BYTES}")).tobytes()
    packed = ", ".join(
        f"{len(zlib.compress(one)) / len(one):.0%} {how}" for one, how in ((ids, "as they came"), (in_order, "sorted"))
    )
    print(f"The last day's ids would be, packed by zlib: {packed}")


def _look_up(name: str, ledger: Ledger, day: str, customers: int) -> None:
    keys = _keys(0, customers)[:: max(1, customers // LOOKED_UP)][:LOOKED_UP]
    before, began, cpu = _peak(), time.monotonic(), time.process_time()
    if name == OF_A_DAY:
        count = len(ledger.delivered(day))
    elif name == OF_CUSTOMERS:
        count = len(ledger.packed_states(keys))
    else:
        count = ledger.delete_before(_day(1))
    seconds, used = time.monotonic() - began, time.process_time() - cpu
    print(f"{name}: {count:,} in {seconds:.1f} s, {used:.1f} s of CPU, {_gigabytes(_peak() - before)} more memory")


def _peak() -> int:
    """The most memory that this process has had, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _ids(rng: np.random.Generator, number: int, events: int) -> bytes:
    """A day's ids where its uuids are UUIDv7 (a time, and chance), one after another, in the order of customers."""
    midnight = int(time.mktime((START + timedelta(days=number)).timetuple())) * 1000
    ids = rng.integers(0, 256, (events, ULID_BYTES), dtype=np.uint8)
    times = (midnight + rng.integers(0, 86_400_000, events)).astype(">u8")
    ids[:, :6] = times.view(np.uint8).reshape(-1, 8)[:, 2:]
    return ids.tobytes()


def _state(rng: np.random.Generator) -> bytes:
    """A customer's: `ATTRIBUTES` of values that nobody else has, set at two times."""
    values = [value_hash(one.tobytes()) for one in rng.integers(0, 1 << 62, ATTRIBUTES)]
    return pack({name_hash(str(at)): (value, 1_700_000_000 + at % 2) for at, value in enumerate(values)})


def _keys(first: int, last: int) -> list[str]:
    return [f"id:user-{number}" for number in range(first, last)]


def _day(number: int) -> str:
    return str(START + timedelta(days=number))


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB"


def _size(url: str) -> int:
    """The database's bytes; SQLite's file after what was written ahead is in it."""
    engine = connect(url, sa.MetaData())
    if engine.dialect.name == "postgresql":
        with engine.connect() as connection:
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0)
    with closing(sqlite3.connect(str(engine.url.database))) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(str(engine.url.database)).stat().st_size


if __name__ == "__main__":
    sys.exit(main())
