"""One HTTP request to one of the two services, retried where that may help, but never endlessly.

No error raised here quotes a header, a URL or a body, and neither do its causes.
"""

from __future__ import annotations

import logging
import queue
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any
from urllib.parse import urlsplit

import requests

from cio_pipeline.errors import PipelineError
from cio_pipeline.http.body import read_body
from cio_pipeline.http.errors import Fault, NotWritten, TooLongBody, fault_of
from cio_pipeline.http.session import Bearer, FewUrls, new_session

__all__ = ["Bearer", "Fault", "FewUrls", "TooLong", "Unavailable", "Unusable", "new_session", "send"]

BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
FAILURES_OF_THE_SERVICE = 3
"""This many failures in a row are not the fault of one connection."""

MAX_BYTES = 256 << 20
ANSWER_SECONDS = 600.0
"""The largest answer, decompressed, and the longest time that a request may take to the last byte of its answer."""

logger = logging.getLogger(__name__)

logging.getLogger("urllib3").setLevel(logging.CRITICAL)
"""It warns of headers that it cannot read by quoting them, with the URL; what is wrong is said here."""

Pause = Callable[[float, bool], object]


class Unavailable(PipelineError):
    """A service gave no usable answer in several tries; the message names it, its host, and the last fault."""


class Unusable(Unavailable):
    """Something answered, but not as the service does."""


class TooLong(Unavailable):
    """The answer was longer than allowed, so that asking again would not help."""


@dataclass(frozen=True)
class Failure:
    """A try without a usable answer: the fault, the error to raise if it was the last try, and the seconds that the answer asks
    to wait.

    is_busy: it does not count as a failed try while there is patience left.
    """

    fault: Fault
    error: type[Unavailable] = Unavailable
    retry_after: float | None = None
    is_busy: bool = False


class Tries:
    """The tries of a request so far, and how many of them have failed with which fault."""

    def __init__(self, where: str, tries: int, patience: float) -> None:
        """where: the service and its host, for the error; the others as in `send`."""
        self._where, self._tries, self._patience = where, tries, patience
        self._made, self._waited, self._kinds = 0, 0.0, Counter[str]()
        self.failed = 0

    def wait_after(self, failure: Failure) -> float:
        """The seconds to wait before the next try. Raises the failure's error where there is to be none."""
        self._made += 1
        wait = failure.retry_after or _backoff(self._made)
        if failure.is_busy:
            self._waited += wait
        else:
            self.failed += 1
        self._kinds[failure.fault.words] += 1
        if (
            self.failed == self._tries
            or self._waited > self._patience
            or self._kinds[failure.fault.words] == failure.fault.tries
        ):
            raise failure.error(self._sentence(failure))
        return wait

    def _sentence(self, failure: Failure) -> str:
        tried = f"{self._made} {'try' if self._made == 1 else 'tries'}"
        what = "gave no usable answer" if failure.error is Unusable else "could not be reached"
        end = "" if failure.fault.words.endswith("?") else "."
        return f"{self._where} {what} in {tried}: {failure.fault.words}{end}"


def send(
    session: requests.Session | FewUrls,
    method: str,
    url: str,
    *,
    service: str,
    retried: Collection[int],
    tries: int,
    patience: float = 0,
    before_each: Callable[[], None] = lambda: None,
    pause: Pause = lambda seconds, _: time.sleep(seconds),
    say: Callable[[str], None] = logger.info,
    fault_in: Callable[[requests.Response], Fault | None] = lambda _: None,
    into: IO[bytes] | None = None,
    max_bytes: int = MAX_BYTES,
    seconds: float = ANSWER_SECONDS,
    **request: Any,
) -> requests.Response:
    """The first answer whose status is not among `retried` and that has no fault. Redirects are never followed.

    Its body has been read: into the file `into`, if there is one and the status is 200, else into `content`. A try fails if the
    body is over `max_bytes`, or not complete after `seconds`. fault_in: returns what is wrong with an answer, or None; it may
    raise what must not be retried.

    Between tries it waits as long as `Retry-After` says (at most an hour), or twice as long each time, with jitter. With
    `patience`, a 429 is not a failed try, but is waited out for that many seconds in all. before_each: called before every try;
    say: called before a wait of ten seconds or more; pause: does the waiting, given the seconds, and whether the whole service
    is at fault.

    Raises `Unavailable` when the tries or the patience are used up, `Unusable` if the last answer had a fault, and
    `http.errors.NotWritten`.
    """
    so_far = Tries(f"{service} ({_host(url)})", tries, patience)
    request["headers"] = {"Accept-Encoding": "gzip, deflate", **(request.get("headers") or {})}
    while True:
        before_each()
        answer = _ask(session, method, url, service, into, max_bytes, seconds, request)
        if isinstance(answer, Fault):
            failure = Failure(answer)
        elif (wanting := _failure(answer, retried, patience > 0, fault_in)) is not None:
            failure = wanting
        else:
            return answer
        wait = so_far.wait_after(failure)
        if wait >= 10:
            say(f"{service}: {failure.fault.words}; trying again in {wait:.0f} s.")
        pause(wait, failure.retry_after is not None or so_far.failed >= FAILURES_OF_THE_SERVICE)


def _failure(
    answer: requests.Response,
    retried: Collection[int],
    is_patient: bool,
    fault_in: Callable[[requests.Response], Fault | None],
) -> Failure | None:
    """Why this is not a usable answer; None if it is."""
    if answer.status_code in retried:
        is_busy = answer.status_code == 429 and is_patient
        return Failure(Fault(f"it answered {answer.status_code}"), Unavailable, _retry_after(answer.headers), is_busy)
    fault = fault_in(answer)
    return None if fault is None else Failure(fault, Unusable, _retry_after(answer.headers))


def _ask(
    session: requests.Session | FewUrls,
    method: str,
    url: str,
    service: str,
    into: IO[bytes] | None,
    max_bytes: int,
    seconds: float,
    request: dict[str, Any],
) -> requests.Response | Fault:
    """One try, in a thread of its own, because a connection's timeouts start again with each byte, even within the head of an
    answer."""
    answers: queue.SimpleQueue[requests.Response | Exception] = queue.SimpleQueue()
    end = time.monotonic() + seconds

    def ask() -> None:
        try:
            response = session.request(method, url, allow_redirects=False, stream=True, **request)
            with closing(response):
                read_body(response, into, max_bytes, end)
            answers.put(response)
        except Exception as error:
            answers.put(error)

    threading.Thread(target=ask, name="request", daemon=True).start()
    try:
        answer = answers.get(timeout=seconds + 1)
    except queue.Empty:
        return _too_slow(seconds)
    if isinstance(answer, requests.Response):
        return answer
    if isinstance(answer, NotWritten):
        raise answer
    if isinstance(answer, TooLongBody):
        raise TooLong(f"{service} ({_host(url)}) gave no usable answer: {answer}.")
    return fault_of(answer, service)


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no host"


def _too_slow(seconds: float) -> Fault:
    return Fault(f"its answer did not come to an end in {seconds:.0f} s")


def _backoff(attempt: int) -> float:
    longest = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** min(attempt - 1, 16))
    return random.uniform(longest / 2, longest)  # noqa: S311 - jitter is no secret


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """The seconds that the answer asks to wait, at most an hour: a number, or a time by the clock of the answer's `Date`."""
    asked = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", asked):
        return min(float(asked), LONGEST_RETRY_AFTER_SECONDS)
    until = _moment(asked)
    if until is None:
        return None
    now = _moment(headers.get("Date", "")) or datetime.now(UTC)
    return min(max((until - now).total_seconds(), 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
