"""Requests are sent by threads that are used again, except one whose answer did not end in time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from cio_pipeline.http import attempt
from cio_pipeline.http.attempt import Limits, send_once
from cio_pipeline.http.errors import UnusableBody


class Session(requests.Session):
    """A session whose requests wait for `released`, and then fail."""

    def __init__(self, released: threading.Event) -> None:
        super().__init__()
        self.released, self.threads = released, list[threading.Thread]()

    def request(self, *_: Any, **__: Any) -> requests.Response:
        self.threads.append(threading.current_thread())
        self.released.wait(10)
        raise requests.ConnectionError


@pytest.fixture(autouse=True)
def _no_idle_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempt, "_idle", [])


@pytest.fixture
def released() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


def send(session: Session, seconds: float = 5) -> requests.Response | Exception:
    return send_once(session, "GET", "http://127.0.0.1", Limits(seconds=seconds), None)


def test_one_thread_sends_request_after_request(released: threading.Event) -> None:
    released.set()
    session = Session(released)
    assert all(isinstance(send(session), requests.ConnectionError) for _ in range(3))
    assert len(set(session.threads)) == 1
    assert threading.current_thread() not in session.threads


def test_requests_at_once_have_a_thread_each(released: threading.Event) -> None:
    session, answers = Session(released), list[object]()
    senders = [threading.Thread(target=lambda: answers.append(send(session))) for _ in range(3)]
    for sender in senders:
        sender.start()
    while len(session.threads) < 3:
        time.sleep(0.001)
    released.set()
    for sender in senders:
        sender.join()
    assert len(answers) == len(set(session.threads)) == 3


def test_a_thread_whose_answer_does_not_end_is_given_up_and_ends_with_it(released: threading.Event) -> None:
    session = Session(released)
    assert isinstance(send(session, seconds=-0.9), UnusableBody)
    released.set()
    assert isinstance(send(session), requests.ConnectionError)
    assert len(set(session.threads)) == 2
    session.threads[0].join(10)
    assert not session.threads[0].is_alive()
    assert session.threads[1].is_alive()
