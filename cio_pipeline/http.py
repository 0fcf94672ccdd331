"""One HTTP request to one of the two services, tried again where that may help."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

import requests
from urllib3.exceptions import InvalidHeader
from urllib3.util.retry import Retry

BROKEN = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,
    requests.exceptions.ContentDecodingError,
)
"""What requests raises where no whole answer came; the last two come while the body is read, beyond urllib3's own retries."""

BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 3600
FAILURES_OF_THE_SERVICE = 3
"""So many failures in a row are no accident of one connection."""

Rest = Callable[[float, bool], object]


class Unavailable(Exception):
    """A service gave no usable answer in the tries it was given; the message says which, its host, and the last trouble."""


def send(
    session: requests.Session,
    method: str,
    url: str,
    *,
    service: str,
    retried: Collection[int],
    tries: int,
    patience: float = 0,
    before_each: Callable[[], None] = lambda: None,
    rest: Rest = lambda seconds, _: time.sleep(seconds),
    say: Callable[[str], None] = lambda _: None,
    **request: Any,
) -> requests.Response:
    """The first answer whose status is not among `retried`; redirects are never followed.

    Waits between tries as `Retry-After` says (an hour at most), else twice as long each time, with jitter. With `patience`, a
    429 is no failed try: it is waited out for so many seconds in all. `before_each` is called before every try, `say` before
    a wait of ten seconds or more. `rest` does the waiting: it is given the seconds, and whether the trouble is the whole
    service's. Raises `Unavailable` when the tries or the patience are spent.
    """
    failed, waited = 0, 0.0
    for attempt in itertools.count(1):
        before_each()
        try:
            response = session.request(method, url, allow_redirects=False, **request)
        except BROKEN as broken:
            trouble, asked, is_busy = f"the connection failed ({type(broken).__name__})", None, False
        else:
            if response.status_code not in retried:
                return response
            trouble, asked = f"it answered {response.status_code}", _retry_after(response)
            is_busy = response.status_code == 429 and patience > 0
        wait = asked or _backoff(attempt)
        waited, failed = (waited + wait, failed) if is_busy else (waited, failed + 1)
        if failed == tries or waited > patience:
            tried = f"{attempt} {'try' if attempt == 1 else 'tries'}"
            raise Unavailable(f"{service} ({urlsplit(url).hostname}) could not be reached in {tried}: {trouble}.")
        if wait >= 10:
            say(f"{service}: {trouble}; trying again in {wait:.0f} s.")
        rest(wait, asked is not None or failed >= FAILURES_OF_THE_SERVICE)
    raise AssertionError


def _backoff(attempt: int) -> float:
    longest = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** min(attempt - 1, 16))
    return random.uniform(longest / 2, longest)  # noqa: S311 - jitter is no secret


def _retry_after(response: requests.Response) -> float | None:
    header = response.headers.get("Retry-After")
    if header is None:
        return None
    try:
        return Retry(retry_after_max=LONGEST_RETRY_AFTER_SECONDS).parse_retry_after(header)
    except InvalidHeader:
        return None
