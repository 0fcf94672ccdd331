"""A server that answers each connection with the given bytes, however odd."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Answer = Callable[[socket.socket, bytes], None]


def http(body: bytes = b"{}", status: str = "200 OK", *headers: str) -> bytes:
    """An HTTP answer, after which the connection is closed."""
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


@contextmanager
def serve(answer: Answer, tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """Runs a server, and yields its URL. answer: called with each connection and request; an exception closes it."""
    listening = socket.create_server(("127.0.0.1", 0))
    open_: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with suppress(OSError), tls.wrap_socket(connection, server_side=True) if tls else connection as connection:
            answer(connection, _request(connection))

    def accept() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                open_.append(connection)
                threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        for opened in [listening, *open_]:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)
            opened.close()


def _request(connection: socket.socket) -> bytes:
    given = b""
    while b"\r\n\r\n" not in given and (more := connection.recv(65536)):
        given += more
    head, _, body = given.partition(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")]
    while lengths and len(body) < int(lengths[0]) and (more := connection.recv(65536)):
        body += more
    return head + b"\r\n\r\n" + body
