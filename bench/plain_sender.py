"""The plain sender that the pipeline is compared with: two calls of the v1 API per event, over ten connections.

It keeps no ledger and no order. To be fast, it writes its HTTP requests itself, and as short as possible.
`python -m bench.plain_sender URL FOLDER EVENTS` prints the seconds and CPU seconds that it took.
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

CONNECTIONS = 10
COLUMNS = ["uuid", "event", "distinct_id", "timestamp", "properties"]
HEADERS = "HTTP/1.1\r\nHost: track\r\nAuthorization: Basic c2l0ZTprZXk=\r\nContent-Type: application/json\r\nContent-Length:"

Row = dict[str, Any]


def send(url: str, rows: list[Row]) -> None:
    """Sends the customer (`identify`) and then the event (`event`) of each row, over one connection."""
    address = urlsplit(url)
    with create_connection((address.hostname or "", address.port or 80)) as connection:
        for row in rows:
            properties = orjson.loads(row["properties"])
            customer, timestamp = quote(row["distinct_id"], safe=""), int(row["timestamp"].timestamp())
            attributes = properties.get("$set", {}) | {"_timestamp": timestamp}
            event = {"name": row["event"], "id": row["uuid"], "timestamp": timestamp, "data": properties}
            _call(connection, f"PUT /api/v1/customers/{customer}", orjson.dumps(attributes))
            _call(connection, f"POST /api/v1/customers/{customer}/events", orjson.dumps(event))


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
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        list(threads.map(lambda start: send(sys.argv[1], sample[start::CONNECTIONS]), range(CONNECTIONS)))
    clock.report()
