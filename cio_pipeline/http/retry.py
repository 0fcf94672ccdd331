"""Sends an HTTP request to a service, and retries it while that may help, but never endlessly.

No error raised here quotes a header, a URL or a body, and neither do its causes.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import IO, Any
from urllib.parse import urlsplit

import requests

from cio_pipeline.errors import PipelineError
from cio_pipeline.http.attempt import Limits, send_once
from cio_pipeline.http.errors import BodyTooLong, NotWritten, Problem, problem_of
from cio_pipeline.http.session import PreparedSession

BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
FAILURES_OF_THE_SERVICE = 3
"""This many failures in a row are not the fault of one connection."""

RETRIED = frozenset({408, 429, *range(500, 600)})
"""Statuses that may pass. Customer.io's own client retries 408, 429 and the usual 5xx (customerio-node 5, lib/request.ts)."""

DEFAULT_LIMITS = Limits()

logger = logging.getLogger(__name__)

# urllib3 warns of headers that it cannot read by quoting them, with the URL. The errors here say what is wrong instead.
logging.getLogger("urllib3").setLevel(logging.CRITICAL)


class Unavailable(PipelineError):
    """A service gave no usable answer in several tries; the message names it, its host, and the last problem."""


class UnusableAnswer(Unavailable):
    """Something answered, but not as the service does."""


class AnswerTooLong(Unavailable):
    """The answer was longer than allowed, so that another request would not help."""


@dataclass(frozen=True)
class RetryPolicy:
    """When a request is sent again, and how it waits until then.

    A try fails if no complete answer comes within the limits, if the answer's status is one of `statuses`, or if `problem_in`
    returns a problem. `problem_in` may raise an error that must not be retried.

    The wait is what `Retry-After` says (at most an hour), or else twice as long each time, with jitter. With `patience`, a 429
    is not a failed try, but is waited out for that many seconds in all.

    before_each: called before every try; pause: does the waiting, given the seconds, and whether the whole service has a
    problem rather than one connection.
    """

    tries: int
    statuses: Collection[int] = ()
    patience: float = 0.0
    problem_in: Callable[[requests.Response], Problem | None] = lambda _: None
    before_each: Callable[[], None] = lambda: None
    pause: Callable[[float, bool], object] = lambda seconds, _: time.sleep(seconds)


def send(
    session: requests.Session | PreparedSession,
    method: str,
    url: str,
    *,
    service: str,
    retry: RetryPolicy,
    limits: Limits = DEFAULT_LIMITS,
    into: IO[bytes] | None = None,
    **request: Any,
) -> requests.Response:
    """Sends a request until it has a usable answer, and returns that, with its body read. Redirects are never followed.

    service: the name in messages; into: a file that gets the body if the status is 200, instead of `content`; request: `data`,
    `headers` and whatever else `requests.Session.request` takes.

    Raises `Unavailable` when the policy allows no more tries, `UnusableAnswer` if the last answer had a problem,
    `AnswerTooLong`, and `http.errors.NotWritten`.
    """
    where = f"{service} ({_host(url)})"
    tries = Tries(where, retry)
    request["headers"] = {"Accept-Encoding": "gzip, deflate", **(request.get("headers") or {})}
    while True:
        retry.before_each()
        answer = send_once(session, method, url, limits, into, **request)
        if isinstance(answer, NotWritten):
            raise answer
        if isinstance(answer, BodyTooLong):
            raise AnswerTooLong(f"{where} gave no usable answer: {answer}.")
        if isinstance(answer, Exception):
            failed = FailedTry(problem_of(answer, service))
        elif (rejected := _rejected(answer, retry)) is not None:
            failed = rejected
        else:
            return answer
        seconds = tries.wait_after(failed)
        if seconds >= 10:
            logger.info("%s: %s; trying again in %.0f s.", service, failed.problem.text, seconds)
        retry.pause(seconds, failed.retry_after is not None or tries.failed >= FAILURES_OF_THE_SERVICE)


@dataclass(frozen=True)
class FailedTry:
    """A try without a usable answer: the problem, the error to raise if it was the last try, and the seconds that the answer
    asks to wait.

    is_rate_limited: a 429, which does not count as a failed try while there is patience left.
    """

    problem: Problem
    error: type[Unavailable] = Unavailable
    retry_after: float | None = None
    is_rate_limited: bool = False


class Tries:
    """The tries of a request so far, and how many of them have failed with which problem."""

    def __init__(self, where: str, policy: RetryPolicy) -> None:
        """where: the service and its host, for the error."""
        self._where, self._policy = where, policy
        self._made, self._waited, self._problems = 0, 0.0, Counter[str]()
        self.failed = 0

    def wait_after(self, failed: FailedTry) -> float:
        """Returns the seconds to wait before the next try. Raises the error of the failed try if it was the last one."""
        self._made += 1
        wait = failed.retry_after or backoff(self._made)
        if failed.is_rate_limited:
            self._waited += wait
        else:
            self.failed += 1
        self._problems[failed.problem.text] += 1
        if (
            self.failed == self._policy.tries
            or self._waited > self._policy.patience
            or self._problems[failed.problem.text] == failed.problem.max_tries
        ):
            raise failed.error(self._sentence(failed))
        return wait

    def _sentence(self, failed: FailedTry) -> str:
        tried = f"{self._made} {'try' if self._made == 1 else 'tries'}"
        what = "gave no usable answer" if failed.error is UnusableAnswer else "could not be reached"
        end = "" if failed.problem.text.endswith("?") else "."
        return f"{self._where} {what} in {tried}: {failed.problem.text}{end}"


def _rejected(answer: requests.Response, retry: RetryPolicy) -> FailedTry | None:
    """The failed try, if the policy does not accept this answer."""
    if answer.status_code in retry.statuses:
        is_rate_limited = answer.status_code == 429 and retry.patience > 0
        return FailedTry(
            Problem(f"it answered {answer.status_code}"), Unavailable, _retry_after(answer.headers), is_rate_limited
        )
    problem = retry.problem_in(answer)
    return None if problem is None else FailedTry(problem, UnusableAnswer, _retry_after(answer.headers))


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no host"


def backoff(attempt: int) -> float:
    """Returns the seconds to wait after this try, the first being 1: twice as long each time, up to a limit, with jitter."""
    longest = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** min(attempt - 1, 16))
    return random.uniform(longest / 2, longest)  # noqa: S311 - jitter is not a secret


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
