"""A webhook and a mail server that record what they receive."""

from __future__ import annotations

import json
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Webhook:
    """The requests that a webhook has received. status: its answer."""

    url: str = ""
    status: int = 200
    got: list[Any] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """The sentences so far."""
        return [body["text"] for body in self.got]


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Runs a webhook on loopback; a GET is recorded as None."""
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


class MailServer(socketserver.ThreadingTCPServer):
    """Serves SMTP, with TLS from the first byte, or from STARTTLS on if `starttls`."""

    daemon_threads = True

    def __init__(self, answers: dict[str, str], tls: ssl.SSLContext | None, *, starttls: bool) -> None:
        self.answers = {
            "EHLO": "250-here\r\n250 AUTH PLAIN",
            "AUTH": "235 yes",
            "DATA": "354 go on",
            "QUIT": "221 bye",
        } | answers
        self.tls, self.starttls, self.lines = tls, starttls, list[str]()
        super().__init__(("127.0.0.1", 0), MailHandler)

    def handle_error(self, *_: object) -> None:
        """A client that does not trust the certificate hangs up."""


class MailHandler(socketserver.StreamRequestHandler):
    """One connection to a `MailServer`."""

    server: MailServer

    def handle(self) -> None:
        """Reads lines to the end."""
        if self.server.tls and not self.server.starttls:
            self._begin_tls(self.server.tls)
        self.wfile.write(b"220 here\r\n")
        in_data, is_plain = False, self.server.starttls
        while received := self.rfile.readline():
            line = received.decode().rstrip("\r\n")
            self.server.lines.append(line)
            in_data = in_data and line != "."
            if in_data:
                continue
            command = line.split(" ")[0].upper()
            answer = self.server.answers.get(line.lower(), self.server.answers.get(command, "250 yes"))
            if is_plain:
                answer = {"EHLO": "250-here\r\n250 STARTTLS", "STARTTLS": "220 go on"}.get(command, "530 TLS first")
            self.wfile.write(f"{answer}\r\n".encode())
            in_data = command == "DATA" and answer.startswith("354")
            if command == "STARTTLS" and is_plain and self.server.tls:
                self._begin_tls(self.server.tls)
                is_plain = False

    def _begin_tls(self, context: ssl.SSLContext) -> None:
        self.connection = context.wrap_socket(self.connection, server_side=True)
        self.rfile, self.wfile = self.connection.makefile("rb"), self.connection.makefile("wb", 0)


@contextmanager
def mail_server(
    answers: dict[str, str] | None = None, tls: ssl.SSLContext | None = None, *, starttls: bool = False
) -> Iterator[tuple[str, list[str]]]:
    """Runs a mail server on loopback. Yields its `host:port`, and the lines it receives. answers: by command, or by line in
    lower case, if not a yes."""
    server = MailServer(answers or {}, tls, starttls=starttls)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", server.lines
    finally:
        server.shutdown()
        server.server_close()
