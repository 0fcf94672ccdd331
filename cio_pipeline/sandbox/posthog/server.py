"""A PostHog on the loopback interface: its APIs, as strict as PostHog's own, over generated or added events."""

import argparse
import json
import signal
import socket
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import orjson

from cio_pipeline.sandbox.posthog.answers import Answer, Refused
from cio_pipeline.sandbox.posthog.capture import Event
from cio_pipeline.sandbox.posthog.ingestion import Ingestion
from cio_pipeline.sandbox.posthog.product import days
from cio_pipeline.sandbox.posthog.project import Project

SEED = 1


class PostHog(ThreadingHTTPServer):
    """Serves a project over HTTP in a thread of its own, until `close` or the end of a `with` block."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, project: Project, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.project = project
        self.ingestion = Ingestion()
        self._open: dict[threading.Thread, socket.socket] = {}
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def add(self, events: Iterable[Event]) -> int:
        """Stores more events in the project. Returns how many."""
        return self.project.add(events)

    def close(self) -> None:
        """Stops serving, and all threads, which would otherwise make DuckDB fail when the interpreter ends."""
        self.shutdown()
        self.project.close()
        for thread, connection in list(self._open.items()):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(timeout=1)
        self.server_close()

    def __exit__(self, *_: object) -> None:
        self.close()

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serves a connection, and remembers it for `close`."""
        self._open[threading.current_thread()] = request
        try:
            super().process_request_thread(request, client_address)
        finally:
            del self._open[threading.current_thread()]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that hang up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: PostHog

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            answer = self._route(path.strip("/").split("/"), body)
        except Refused as refused:
            answer = Answer(orjson.dumps(refused.body), refused.status)
        except Exception as error:  # PostHog also answers after a bug
            answer = Answer(orjson.dumps(Refused(500, "server_error", "error", repr(error)).body), 500)
        if path.startswith("/api/"):
            self.server.project.count(answer.status)
        kind = "application/json" if answer.content[:1] in b"{[" else "text/plain; charset=utf-8"
        self.send_response(answer.status)
        for name, value in {**answer.headers, "Content-Type": kind, "Content-Length": str(len(answer.content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.content)

    def _route(self, path: list[str], body: bytes) -> Answer:
        project = self.server.project
        match self.command, path:
            case "GET", ["api", "projects", project_id, "events"]:
                project.authorize(self.headers.get("Authorization", ""), project_id)
                return project.events(f"{self.server.url}{self.path}")
            case _, ["api", "projects", _, "query"] if project.legacy:
                raise Refused(404, "invalid_request", "not_found", "Endpoint not found.")
            case "POST", ["api", "projects", project_id, "query"]:
                project.authorize(self.headers.get("Authorization", ""), project_id)
                return project.query(_json_body(body))
            case _, ["api", "projects", _, "query"]:
                raise Refused(405, "invalid_request", "method_not_allowed", f'Method "{self.command}" not allowed.')
            case method, ["api", "projects", project_id, "file_download_batch_exports", *rest]:
                project.authorize(self.headers.get("Authorization", ""), project_id)
                return project.file_downloads.answer(method, rest, _json_body(body or b"{}"), self.server.url)
            case "GET", ["sandbox", "files", link]:
                return project.file_downloads.file(link, set(self.headers))
            case "POST", ["batch"] | ["capture"] | ["e"] | ["i", "v0", "e"]:
                _add(project, _captured(self.server.ingestion, body))
                return Answer(b'{"status":1}')
            case "POST", ["sandbox", "events"]:
                return Answer(orjson.dumps({"added": _add(project, _json_body(body))}))
            case "GET", [""]:
                return Answer(project.page().encode())
        raise Refused(404, "invalid_request", "not_found", "Endpoint not found.")


def _json_body(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError as error:
        raise Refused(400, "validation_error", "invalid_json", f"JSON parse error - {error}") from error


def _captured(ingestion: Ingestion, body: bytes) -> list[Event]:
    try:
        return ingestion.stored(body)
    except (AttributeError, EOFError, KeyError, OSError, TypeError, ValueError) as error:
        raise Refused(400, "validation_error", "invalid_payload", "Failed to decode the body of the request.") from error


def _add(project: Project, events: Iterable[Event]) -> int:
    try:
        return project.add(events)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        detail = f"These are not stored events: {error!r}"
        raise Refused(400, "validation_error", "invalid_input", detail) from error


def serve(events: Iterable[Event] = (), project: Project | None = None, port: int = 0) -> PostHog:
    """Serves a project with these events on a port of 127.0.0.1 (0: any free port)."""
    project = project or Project()
    project.add(events)
    return PostHog(project, port)


def main() -> None:
    """Serves generated days until SIGTERM or SIGINT."""
    ended = threading.Event()  # an exception instead would interrupt DuckDB in the middle of storing the days
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    parser = argparse.ArgumentParser(prog="python -m cio_pipeline.sandbox.posthog.server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--start", type=date.fromisoformat, default=date(2026, 3, 1), help="the first day")
    parser.add_argument("--days", type=int, default=10)
    options = parser.parse_args()
    with serve(days(SEED, options.start, options.days), port=options.port) as posthog:
        print(f"PostHog sandbox on {posthog.url}", flush=True)
        ended.wait()


if __name__ == "__main__":
    main()
