"""A Customer.io on the loopback interface, in memory: the Track API, and pages that show its people.

`python -m cio_pipeline.sandbox.customerio.server` starts it; in a test, `with serve() as sandbox` does.
"""

import argparse
import base64
import itertools
import os
import re
import signal
import socket
import socketserver
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import orjson

from cio_pipeline.sandbox.customerio.pages import missing_page, people_page, person_page
from cio_pipeline.sandbox.customerio.workspace import Answer, Workspace

EVENTS_PATH = re.compile(r"/api/v1/customers/([^/]+)/events")
PAGE_SIZE = 50

Fault = tuple[Literal["status"], int, Mapping[str, str]] | Literal["reset-before", "reset-after", "slow"] | None
Faults = Callable[[int, str], Fault]


@dataclass(frozen=True)
class Request:
    """A call of the Track API. status: 0 if the connection was reset; bytes: the size of the body."""

    method: str
    path: str
    status: int
    bytes: int


class CustomerioServer(socketserver.ThreadingTCPServer):
    """The running sandbox: its `url`, its `workspace`, and the `requests` to `/api/`.

    `faults` is called with the number of each such request (from 1) and its path. It returns `("status", code, headers)` to
    answer that at once, `"reset-before"` or `"reset-after"` to break the connection before or after the request is processed,
    `"slow"` to answer `slow_seconds` later, or None.
    """

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, site_id: str, api_key: str, faults: Faults | None, slow_seconds: float) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.workspace = Workspace()
        self.requests: list[Request] = []
        self.faults = faults
        self.slow_seconds = slow_seconds
        self.numbers = itertools.count(1)
        self._token = base64.b64encode(f"{site_id}:{api_key}".encode()).decode()

    def answer(self, method: str, path: str, authorization: str, body: bytes) -> Answer:
        """Returns the Track API's answer: status and JSON body."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "basic" or token.strip() != self._token:
            return 401, {"meta": {"error": "Unauthorized request"}}
        customer = EVENTS_PATH.fullmatch(path)
        match method, path:
            case "GET", "/api/v1/accounts/region":
                return 200, {"url": self.url, "region": "us", "environment_id": 1}
            case "POST", "/api/v2/batch":
                return self.workspace.batch(body)
            case "POST", _ if customer:
                return self.workspace.customer_event(unquote(customer[1]), body)
        return 404, {"meta": {"error": "the sandbox has no such call"}}

    def totals(self) -> dict[str, int]:
        """Counts the people, events and requests."""
        return {**self.workspace.totals(), "requests": len(self.requests)}

    def request_counts(self) -> dict[str, Any]:
        """Counts the requests so far, in all, by path and by status."""
        paths = (re.sub(r"^(/api/v1/customers)/[^/]+", r"\1/{identifier}", request.path) for request in self.requests)
        statuses = (str(request.status) for request in self.requests)
        return {"requests": len(self.requests), "by_path": Counter(paths), "by_status": Counter(statuses)}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that hang up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Serves a connection, which is kept alive."""

    server: CustomerioServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def do_GET(self) -> None:
        """Answers a request of any method: `/api/` is Customer.io's, the rest is the sandbox's own."""
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            self._send_json(411, {"meta": {"error": "the sandbox needs a Content-Length"}})
            return
        body = self.rfile.read(int(length))
        if self.path.startswith("/api/"):
            self._track(body)
        else:
            self._show()

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: the requests are counted instead."""

    def _track(self, body: bytes) -> None:
        number = next(self.server.numbers)
        fault = self.server.faults(number, self.path) if self.server.faults else None
        status, answer = 0, dict[str, Any]()
        headers: Mapping[str, str] = {}
        if isinstance(fault, tuple):
            _, status, headers = fault
            answer = {"meta": {"error": "a fault of the sandbox"}}
        elif fault != "reset-before":
            path, authorization = urlsplit(self.path).path, self.headers.get("Authorization", "")
            status, answer = self.server.answer(self.command, path, authorization, body)
        if fault == "slow":
            time.sleep(self.server.slow_seconds)
        reset = fault in ("reset-before", "reset-after")
        self.server.requests.append(Request(self.command, self.path, 0 if reset else status, len(body)))
        if reset:
            self._reset()
        else:
            self._send_json(status, answer, headers)

    def _show(self) -> None:
        url = urlsplit(self.path)
        server = self.server
        if self.command != "GET":
            self._send_json(404, {"meta": {"error": "the sandbox has no such call"}})
        elif url.path == "/":
            self._send_people(parse_qs(url.query))
        elif url.path.startswith("/people/"):
            text = unquote(url.path.removeprefix("/people/"))
            person = server.workspace.person(text)
            page = person_page(person, server.totals()) if person else missing_page(text, server.totals())
            self._send(200 if person else 404, "text/html; charset=utf-8", page.encode())
        elif url.path == "/sandbox/people":
            self._send_json(200, [person.to_dict() for person in server.workspace.people()])
        elif url.path == "/sandbox/requests":
            self._send_json(200, server.request_counts())
        else:
            self._send(404, "text/html; charset=utf-8", missing_page(url.path, server.totals()).encode())

    def _send_people(self, query: dict[str, list[str]]) -> None:
        wanted, number = query.get("q", [""])[0], query.get("page", ["1"])[0]
        page = int(number) if re.fullmatch(r"[1-9][0-9]{0,5}", number) else 1
        people, found = self.server.workspace.search(wanted, (page - 1) * PAGE_SIZE, page * PAGE_SIZE)
        html = people_page(people, self.server.totals(), query=wanted, page=page, pages=-(-found // PAGE_SIZE))
        self._send(200, "text/html; charset=utf-8", html.encode())

    def _send_json(self, status: int, answer: Any, headers: Mapping[str, str] | None = None) -> None:
        self._send(status, "application/json", orjson.dumps(answer), headers)

    def _send(self, status: int, content_type: str, content: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": content_type, "Content-Length": len(content), **(headers or {})}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def _reset(self) -> None:
        """Breaks the connection with a TCP reset, as a lost peer does."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())


@contextmanager
def serve(
    *,
    port: int = 0,
    site_id: str = "sandbox",
    api_key: str = "sandbox-key",
    faults: Faults | None = None,
    slow_seconds: float = 1.0,
) -> Iterator[CustomerioServer]:
    """Runs the sandbox in a thread until the block ends. port: 0 for any free one."""
    server = CustomerioServer(port, site_id, api_key, faults, slow_seconds)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main() -> None:
    """Prints the URL, and serves until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m cio_pipeline.sandbox.customerio.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    arguments = parser.parse_args()
    # Blocked before any thread starts, so that only sigwait below receives them, however early they arrive.
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    try:
        with serve(port=arguments.port) as server:
            print(f"Customer.io sandbox on {server.url}", flush=True)
            signal.sigwait(stop)
    except OSError as error:
        parser.exit(1, f"Cannot listen on port {arguments.port}: {error.strerror}\n")


if __name__ == "__main__":
    main()
