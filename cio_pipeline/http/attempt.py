"""Sends a request once, within limits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any, TypeAlias

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

    The request is sent in another thread, because a connection's timeouts start again with each byte, even within the head of
    an answer. A thread whose answer does not end in time is given up.
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

    thread = _idle_thread()
    thread.put(ask)
    try:
        answer = answers.get(timeout=limits.seconds + 1)
    except queue.Empty:
        thread.put(None)
        return UnusableBody(f"its answer did not come to an end in {limits.seconds:.0f} s")
    _idle.append(thread)
    return answer


_Thread: TypeAlias = "queue.SimpleQueue[Callable[[], None] | None]"
"""A thread that sends requests, by the queue from which it takes what to do next: None is its end."""

_idle: list[_Thread] = []
"""The threads that have nothing to do. Starting one for each request would take a tenth of a large day's delivery."""


def _idle_thread() -> _Thread:
    try:
        return _idle.pop()
    except IndexError:
        thread: _Thread = queue.SimpleQueue()
        threading.Thread(target=_work_through, args=(thread,), name="request", daemon=True).start()
        return thread


def _work_through(tasks: _Thread) -> None:
    while (task := tasks.get()) is not None:
        task()
