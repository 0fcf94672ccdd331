"""The plain senders that the pipeline is compared with: two calls of the v1 API per event, over ten keep-alive connections.

They keep no ledger and no order. One uses Python's `http.client`, as a plain connector would. The other writes its requests to
sockets itself, as short as possible, which is the fastest that such a sender can be in Python.
`python -m bench.plain_sender URL FOLDER EVENTS CLIENT` prints the seconds and CPU seconds that it took.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from socket import create_connection, socket
from typing import Any
from urllib.parse import quote, urlsplit

import orjson
import pyarrow.parquet as pq

from bench.clock import Clock

CONNECTIONS = 10
COLUMNS = ["uuid", "event", "distinct_id", "timestamp", "properties"]
HEADERS = {"Authorization": "Basic c2l0ZTprZXk=", "Content-Type": "application/json"}
WRITTEN_HEADERS = "Host: track\r\n" + "".join(f"{name}: {value}\r\n" for name, value in HEADERS.items())

Row = dict[str, Any]
Call = Callable[[str, str, bytes], None]
"""Sends a request with this method, path and body, and reads its answer."""


def with_http_client(address: str, rows: list[Row]) -> None:
    """Sends the rows over one connection of `http.client`."""
    with closing(HTTPConnection(address)) as connection:

        def call(method: str, path: str, body: bytes) -> None:
            connection.request(method, path, body, HEADERS)
            answer = connection.getresponse()
            _check(answer.status == 200 and answer.read() == b"{}")

        _send(rows, call)


def with_socket(address: str, rows: list[Row]) -> None:
    """Sends the rows over one socket."""
    host, _, port = address.partition(":")
    with create_connection((host, int(port))) as connection:
        _send(rows, lambda *request: _write(connection, *request))


CLIENTS = {"http.client": with_http_client, "sockets": with_socket}


def _send(rows: list[Row], call: Call) -> None:
    """Sends the customer (`identify`) and then the event (`event`) of each row."""
    for row in rows:
        properties = orjson.loads(row["properties"])
        path, timestamp = f"/api/v1/customers/{quote(row['distinct_id'], safe='')}", int(row["timestamp"].timestamp())
        attributes = properties.get("$set", {}) | {"_timestamp": timestamp}
        event = {"name": row["event"], "id": row["uuid"], "timestamp": timestamp, "data": properties}
        call("PUT", path, orjson.dumps(attributes))
        call("POST", f"{path}/events", orjson.dumps(event))


def _write(connection: socket, method: str, path: str, body: bytes) -> None:
    connection.sendall(f"{method} {path} HTTP/1.1\r\n{WRITTEN_HEADERS}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = connection.recv(65_536)
    _check(answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"{}"))


def _check(is_accepted: bool) -> None:
    if not is_accepted:
        raise RuntimeError("Customer.io's stand-in did not accept a request.")


def _read(folder: Path, events: int) -> Iterator[Row]:
    for path in sorted(folder.iterdir()):
        for batch in pq.ParquetFile(path).iter_batches(10_000, columns=COLUMNS):
            rows = batch.to_pylist()[:events]
            events -= len(rows)
            yield from rows
            if not events:
                return


if __name__ == "__main__":
    url, folder, events, client = sys.argv[1:]
    clock = Clock()
    sample = list(_read(Path(folder), int(events)))
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        parts = [sample[start::CONNECTIONS] for start in range(CONNECTIONS)]
        list(threads.map(lambda rows: CLIENTS[client](urlsplit(url).netloc, rows), parts))
    clock.report()
