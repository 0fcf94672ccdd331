"""Sends a request once, within limits."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any

import requests

from cio_pipeline.http.body import read_body
from cio_pipeline.http.errors import UnusableBody
from cio_pipeline.http.session import PreparedSession


@dataclass(frozen=True)
class Limits:
    """The limits of one try: what is beyond them is a failed try.

    max_bytes: the size of the decompressed body; seconds: the time up to the last byte of the answer; timeout: seconds to
    connect, and between two bytes.
    """

    max_bytes: int = 256 << 20
    seconds: float = 600.0
    timeout: tuple[float, float] = (600.0, 600.0)


def send_once(
    session: requests.Session | PreparedSession,
    method: str,
    url: str,
    limits: Limits,
    into: IO[bytes] | None,
    **request: Any,
) -> requests.Response | Exception:
    """Returns the answer, with its body read, or the exception because of which there is none.

    The request is sent in a thread of its own, because a connection's timeouts start again with each byte, even within the head
    of an answer.
    """
    answers: queue.SimpleQueue[requests.Response | Exception] = queue.SimpleQueue()
    end = time.monotonic() + limits.seconds

    def ask() -> None:
        try:
            response = session.request(method, url, allow_redirects=False, stream=True, timeout=limits.timeout, **request)
            with closing(response):
                read_body(response, into, limits.max_bytes, end)
            answers.put(response)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, name="request", daemon=True).start()
    try:
        return answers.get(timeout=limits.seconds + 1)
    except queue.Empty:
        return UnusableBody(f"its answer did not come to an end in {limits.seconds:.0f} s")
