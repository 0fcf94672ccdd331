"""The least that any pipeline does: it reads the files, parses each event's JSON once, writes it once as an operation that
Customer.io accepts, and posts it once, in batches. It knows no rules, no customers and no ledger.

`python -m bench.floor URL FOLDER` prints the seconds and CPU seconds that it took.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pyarrow.parquet as pq

from bench.clock import Clock

MAX_REQUEST_BYTES = 475_000
"""As in the pipeline: Customer.io accepts batches of less than 500 KB."""

COLUMNS = ["uuid", "event", "distinct_id", "timestamp", "properties"]


def batches(folder: Path) -> Iterator[bytes]:
    """Yields the bodies of the requests."""
    body: list[bytes] = []
    size = 0
    for path in sorted(folder.iterdir()):
        for rows in pq.ParquetFile(path).iter_batches(10_000, columns=COLUMNS):
            for row in rows.to_pylist():
                operation = orjson.dumps(_operation(row))
                if size + len(operation) > MAX_REQUEST_BYTES:
                    yield b'{"batch":[' + b",".join(body) + b"]}"
                    body, size = [], 0
                body.append(operation)
                size += len(operation) + 1
    yield b'{"batch":[' + b",".join(body) + b"]}"


def _operation(row: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "person",
        "identifiers": {"id": row["distinct_id"]},
        "action": "event",
        "name": row["event"],
        "id": row["uuid"],
        "timestamp": int(row["timestamp"].timestamp()),
        "attributes": orjson.loads(row["properties"]),
    }


if __name__ == "__main__":
    clock = Clock()
    connection = HTTPConnection(urlsplit(sys.argv[1]).netloc)
    for batch in batches(Path(sys.argv[2])):
        connection.request("POST", "/api/v2/batch", batch)
        if connection.getresponse().read() != b"{}":
            raise RuntimeError("Customer.io's stand-in did not accept a batch.")
    clock.report()
