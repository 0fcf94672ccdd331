"""A webhook and a mail server that keep what they are given."""

from __future__ import annotations

import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """What a URL was called with. `status` is its answer."""

    url: str = ""
    status: int = 200
    got: list[Any] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The sentences so far."""
        return [body["text"] for body in self.got]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """A server on loopback; a GET is kept as None."""
    kept = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if kept.status == 200:
                kept.got.append(json.loads(body) if body else None)
            self.send_response(kept.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    kept.url = f"http://127.0.0.1:{server.server_port}/services/T0/secret-token?a=b"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def mail_server(answers: dict[str, str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """A mail server on loopback: its `host:port`, and the lines it was given. `answers`: to a command, if not yes."""
    lines: list[str] = []
    said = {"EHLO": "250-here\r\n250 AUTH PLAIN", "AUTH": "235 yes", "DATA": "354 go on", "QUIT": "221 bye", **(answers or {})}

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            in_data = False
            for received in self.rfile:
                line = received.decode().rstrip("\r\n")
                lines.append(line)
                in_data = in_data and line != "."
                if in_data:
                    continue
                command = line.split(" ")[0].upper()
                self.wfile.write(f"{said.get(command, '250 yes')}\r\n".encode())
                in_data = command == "DATA" and said["DATA"].startswith("354")

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", lines
    finally:
        server.shutdown()
        server.server_close()
