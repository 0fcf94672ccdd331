"""One HTTP request to one of the two services, tried again where that may help."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection
from typing import Any

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


class Unavailable(Exception):
    """A service gave no usable answer in the tries it was given; the message says which, and the last trouble."""


def send(
    session: requests.Session,
    method: str,
    url: str,
    *,
    service: str,
    retried: Collection[int],
    tries: int,
    before_each: Callable[[], None] = lambda: None,
    say: Callable[[str], None] = lambda _: None,
    **request: Any,
) -> requests.Response:
    """The first answer whose status is not among `retried`; redirects are never followed.

    Waits between tries as `Retry-After` says (an hour at most), else twice as long each time, with jitter. `before_each` is
    called before every try, `say` before a wait of ten seconds or more. Raises `Unavailable` when the tries are spent.
    """
    for attempt in range(1, tries + 1):
        before_each()
        try:
            response = session.request(method, url, allow_redirects=False, **request)
        except BROKEN as broken:
            trouble, asked = f"the connection failed ({type(broken).__name__})", None
        else:
            if response.status_code not in retried:
                return response
            trouble, asked = f"it answered {response.status_code}", _retry_after(response)
        if attempt < tries:
            wait = _backoff(attempt) if asked is None else asked
            if wait >= 10:
                say(f"{service}: {trouble}; trying again in {wait:.0f} s.")
            time.sleep(wait)
    raise Unavailable(f"{service} could not be reached in {tries} tries: {trouble}.")


def _backoff(attempt: int) -> float:
    longest = min(LONGEST_BACKOFF_SECONDS, BACKOFF_SECONDS * 2 ** (attempt - 1))
    return random.uniform(longest / 2, longest)  # noqa: S311 - jitter is no secret


def _retry_after(response: requests.Response) -> float | None:
    header = response.headers.get("Retry-After")
    if header is None:
        return None
    try:
        return Retry(retry_after_max=LONGEST_RETRY_AFTER_SECONDS).parse_retry_after(header)
    except InvalidHeader:
        return None
