"""What the pipeline is compared with: a sender of two calls an event, `identify` and `event` of the v1 API, 10 in flight.

It keeps no ledger and orders nothing. Its HTTP is no more than the bytes that must go out, so that it is a fast one.
`python -m bench.plain_sender URL FOLDER EVENTS` prints its seconds and CPU seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from socket import create_connection, socket
from typing import Any
from urllib.parse import quote, urlsplit

import orjson
import pyarrow.parquet as pq

from bench.clock import Clock

IN_FLIGHT = 10
COLUMNS = ["uuid", "event", "distinct_id", "timestamp", "properties"]
HEADERS = "HTTP/1.1\r\nHost: track\r\nAuthorization: Basic c2l0ZTprZXk=\r\nContent-Type: application/json\r\nContent-Length:"

Row = dict[str, Any]


def send(url: str, rows: list[Row]) -> None:
    """Sends each event's customer, then the event, over one connection."""
    place = urlsplit(url)
    with create_connection((place.hostname or "", place.port or 80)) as connection:
        for row in rows:
            properties = orjson.loads(row["properties"])
            who, at = quote(row["distinct_id"], safe=""), int(row["timestamp"].timestamp())
            attributes = properties.get("$set", {}) | {"_timestamp": at}
            event = {"name": row["event"], "id": row["uuid"], "timestamp": at, "data": properties}
            _call(connection, f"PUT /api/v1/customers/{who}", orjson.dumps(attributes))
            _call(connection, f"POST /api/v1/customers/{who}/events", orjson.dumps(event))


def _call(connection: socket, line: str, body: bytes) -> None:
    connection.sendall(f"{line} {HEADERS} {len(body)}\r\n\r\n".encode() + body)
    answer = connection.recv(65_536)
    if not (answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"{}")):
        raise RuntimeError(f"Customer.io's stand-in answered {answer[:100]!r}.")


def _read(folder: Path, events: int) -> Iterator[Row]:
    for path in sorted(folder.iterdir()):
        for batch in pq.ParquetFile(path).iter_batches(10_000, columns=COLUMNS):
            rows = batch.to_pylist()[:events]
            events -= len(rows)
            yield from rows
            if not events:
                return


if __name__ == "__main__":
    clock = Clock()
    sample = list(_read(Path(sys.argv[2]), int(sys.argv[3])))
    with ThreadPoolExecutor(IN_FLIGHT) as threads:
        list(threads.map(lambda start: send(sys.argv[1], sample[start::IN_FLIGHT]), range(IN_FLIGHT)))
    clock.report()
