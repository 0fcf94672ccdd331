"""One HTTP request to one of the two services, tried again where that may help, and never without an end.

Nothing that is raised here quotes a header, a URL or a body, nor does what it was caused by.
"""

from __future__ import annotations

import itertools
import logging
import queue
import random
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import IO, Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url

from cio_pipeline.errors import PipelineError
from cio_pipeline.http_errors import TooLongBody, Trouble, UnusableBody, trouble_of

__all__ = ["Bearer", "TooLong", "Trouble", "Unavailable", "Unusable", "new_session", "send"]

BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 30.0
LONGEST_RETRY_AFTER_SECONDS = 3600.0
FAILURES_OF_THE_SERVICE = 3
"""So many failures in a row are no accident of one connection."""

MOST_BYTES = 256 << 20
ANSWER_SECONDS = 600.0
"""The most that an answer may have, unpacked, and the longest that a request may take to the last byte of its answer."""

BLOCK_BYTES = 1 << 16
GZIP_OR_ZLIB = 47
"""zlib's number for either."""

logging.getLogger("urllib3").setLevel(logging.CRITICAL)
"""It warns of headers that it cannot read by quoting them, with the URL; what is wrong is said here."""

Rest = Callable[[float, bool], object]


class Unavailable(PipelineError):
    """A service gave no usable answer in the tries it was given; the message says which, its host, and the last trouble."""


class Unusable(Unavailable):
    """The service did answer, but not as itself."""


class TooLong(Unavailable):
    """The answer was longer than it may be: asking again would not help."""


class Bearer(AuthBase):
    """A bearer token for each request of a session."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The request with the token."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def new_session(auth: AuthBase | None = None) -> requests.Session:
    """A session with the proxies and the CA that the environment names, as requests reads them, but without `.netrc`.

    requests would take credentials from there where a session has none of its own: without `auth`, a session has those of
    each URL, or none.
    """
    session = requests.Session()
    session.auth = auth or _login_of_the_url
    return session


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
    fault_in: Callable[[requests.Response], Trouble | None] = lambda _: None,
    into: IO[bytes] | None = None,
    most_bytes: int = MOST_BYTES,
    seconds: float = ANSWER_SECONDS,
    **request: Any,
) -> requests.Response:
    """The first answer whose status is not among `retried` and in which there is no fault; redirects are never followed.

    Its body has been read: of a 200 into the file `into`, where there is one, else into `content`. It has at most `most_bytes`
    and is there after at most `seconds`, else the try has failed. `fault_in` gives what is wrong with an answer, or None; it
    may raise what shall not be tried again.

    Waits between tries as `Retry-After` says (an hour at most), else twice as long each time, with jitter. With `patience`, a
    429 is no failed try: it is waited out for so many seconds in all. `before_each` is called before every try, `say` before
    a wait of ten seconds or more. `rest` does the waiting: it is given the seconds, and whether the trouble is the whole
    service's. Raises `Unavailable` when the tries or the patience are spent, `Unusable` where the last answer was wanting.
    """
    failed, waited, kinds = 0, 0.0, Counter[str]()
    request["headers"] = {"Accept-Encoding": "gzip, deflate", **(request.get("headers") or {})}
    for attempt in itertools.count(1):
        before_each()
        answer = _ask(session, method, url, service, into, most_bytes, seconds, request)
        wrong, asked, is_busy = Unavailable, None, False
        if isinstance(answer, Trouble):
            trouble = answer
        elif answer.status_code in retried:
            trouble, asked = Trouble(f"it answered {answer.status_code}"), _retry_after(answer.headers)
            is_busy = answer.status_code == 429 and patience > 0
        elif (fault := fault_in(answer)) is not None:
            trouble, asked, wrong = fault, _retry_after(answer.headers), Unusable
        else:
            return answer
        wait = asked or _backoff(attempt)
        waited, failed = (waited + wait, failed) if is_busy else (waited, failed + 1)
        kinds[trouble.words] += 1
        if failed == tries or waited > patience or kinds[trouble.words] == trouble.tries:
            tried = f"{attempt} {'try' if attempt == 1 else 'tries'}"
            failure = "gave no usable answer" if wrong is Unusable else "could not be reached"
            end = "" if trouble.words.endswith("?") else "."
            raise wrong(f"{service} ({_host(url)}) {failure} in {tried}: {trouble.words}{end}")
        if wait >= 10:
            say(f"{service}: {trouble.words}; trying again in {wait:.0f} s.")
        rest(wait, asked is not None or failed >= FAILURES_OF_THE_SERVICE)
    raise AssertionError


def _ask(
    session: requests.Session,
    method: str,
    url: str,
    service: str,
    into: IO[bytes] | None,
    most_bytes: int,
    seconds: float,
    request: dict[str, Any],
) -> requests.Response | Trouble:
    """One try, in a thread of its own: a connection's timeouts begin anew with each byte, also within the head of an answer."""
    answers: queue.SimpleQueue[requests.Response | Exception] = queue.SimpleQueue()
    end = time.monotonic() + seconds

    def ask() -> None:
        try:
            response = session.request(method, url, allow_redirects=False, stream=True, **request)
            with closing(response):
                _read(response, into, most_bytes, end)
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
    if isinstance(answer, TooLongBody):
        raise TooLong(f"{service} ({_host(url)}) gave no usable answer: {answer}.")
    return trouble_of(answer, service)


def _read(response: requests.Response, into: IO[bytes] | None, most_bytes: int, end: float) -> None:
    """Reads the body into the response or the file. Raises `UnusableBody`, and what urllib3 and the socket raise."""
    file = into if response.status_code == 200 else None
    if file is not None:
        file.seek(0)
        file.truncate()
    content, length = bytearray(), 0
    for block in _unpacked(_blocks(response, end), response.headers.get("Content-Encoding", "").strip().lower()):
        length += len(block)
        if length > most_bytes:
            raise TooLongBody(f"its answer is over {most_bytes:,} bytes")
        if file is None:
            content += block
        else:
            file.write(block)
    if file is not None:
        file.flush()
    response._content, response._content_consumed = bytes(content), True  # type: ignore[attr-defined]


def _blocks(response: requests.Response, end: float) -> Iterator[bytes]:
    """What has come, as it comes, until there is no more; nothing is given after `end`."""
    while block := response.raw.read1(BLOCK_BYTES, decode_content=False):
        if time.monotonic() > end:
            raise UnusableBody("its answer did not come to an end in time")
        yield block


def _unpacked(blocks: Iterable[bytes], encoding: str) -> Iterator[bytes]:
    """What was packed, in blocks that are small however much it is: urllib3 gives as much as a block unpacks to."""
    if encoding in ("", "identity"):
        yield from blocks
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise UnusableBody("it answered in an encoding that it was not asked for")
    unpack, is_whole = zlib.decompressobj(GZIP_OR_ZLIB), True
    try:
        for given in blocks:
            block = given
            while block:
                yield unpack.decompress(block, BLOCK_BYTES)
                is_whole, block = unpack.eof, unpack.unused_data or unpack.unconsumed_tail
                if unpack.eof:
                    unpack = zlib.decompressobj(GZIP_OR_ZLIB)
        yield unpack.flush()
        is_whole = is_whole or unpack.eof
    except zlib.error:
        is_whole = False
    if not is_whole:
        raise UnusableBody("its answer was packed, and cannot be unpacked")


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or "no host"
    except ValueError:
        return "no host"


def _too_slow(seconds: float) -> Trouble:
    return Trouble(f"its answer did not come to an end in {seconds:.0f} s")


def _login_of_the_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    user, password = get_auth_from_url(request.url or "")
    return HTTPBasicAuth(user, password)(request) if user or password else request


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
    now = _moment(headers.get("Date", "")) or datetime.now(timezone.utc)
    return min(max((until - now).total_seconds(), 0.0), LONGEST_RETRY_AFTER_SECONDS)


def _moment(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
