"""A stand-in for Customer.io, which accepts and counts everything as fast as it can.

`python -m bench.customerio LATENCY_MS` prints its URL. `GET /counts` returns what it has received since the last such request,
as JSON: `requests` with their `bytes`, `customers` and `events`, and `checks` of the credentials.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
REGION = b'{"region":"us","url":"https://track.customer.io","data_center":"us","environment_id":1}'

counts: Counter[str] = Counter()


class Connection(asyncio.Protocol):
    """A keep-alive connection. Each request is answered `latency` seconds after its last byte."""

    def __init__(self, latency: float) -> None:
        self._latency = latency
        self._parts: list[bytes] = []
        self._missing = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport for the answers."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Collects the bytes of a request. Clients send the next one only when it is answered."""
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        request = b"".join(self._parts)
        end = request.find(b"\r\n\r\n") + 4
        if end < 4:
            self._parts, self._missing = [request], 0
            return
        length = LENGTH.search(request, 0, end)
        self._missing = end + int(length[1] if length else 0) - len(request)
        if self._missing > 0:
            self._parts = [request]
            return
        self._parts, self._missing = [], 0
        self._answer(request, end)

    def _answer(self, request: bytes, end: int) -> None:
        if request.startswith(b"GET /counts"):
            body = json.dumps(counts).encode()
            counts.clear()
        elif request.startswith(b"GET "):
            counts["checks"] += 1
            body = REGION
        else:
            _count(request, end)
            body = b"{}"
        answer = ANSWER % (len(body), body)
        if self._latency:
            asyncio.get_running_loop().call_later(self._latency, self._transport.write, answer)
        else:
            self._transport.write(answer)


def _count(request: bytes, end: int) -> None:
    """Counts a batch by its actions, which no event of the benchmark contains in its data."""
    counts["requests"] += 1
    counts["bytes"] += len(request) - end
    customers = request.count(b'"action":"identify"', end)
    counts["customers"] += customers
    counts["events"] += request.count(b'"action":"', end) - customers


async def _serve(latency: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Connection(latency), "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1]) / 1_000))
