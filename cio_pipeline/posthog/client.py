"""A client for PostHog's private API: one project, one key. An answer is JSON, or a sentence that says what to fix."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import requests

from cio_pipeline.http.attempt import Limits
from cio_pipeline.http.retry import RETRIED, RetryPolicy, backoff, send
from cio_pipeline.http.session import Bearer, new_session
from cio_pipeline.json_text import loads
from cio_pipeline.masking import mask, without_keys
from cio_pipeline.posthog.source import NotExtracted

logger = logging.getLogger(__name__)

TOO_BIG = frozenset({413, 512, 513})
"""A query ran out of time or memory, and a smaller one may not. PostHog also says so in words, with 400 and 504."""

TOO_BIG_WORDS = re.compile(
    r"memory[ _]limit|exceed\w*[ _]memory|out[ _]of[ _]memory|timeout[ _]exceeded|max(imum)?[ _]execution[ _]time"
    r"|execution[ _]time[ _](is[ _])?too[ _]long|too[ _]many[ _](bytes|rows)|too[ _]slow|query[ _]size[ _]exceeded",
    re.IGNORECASE,
)

TRIES = 9
TIMEOUT_SECONDS = (10, 150)

PATIENCE_SECONDS = 6 * 3600
"""How long to wait out 429s: neither a used-up hourly read budget nor other clients' queries should make a day fail."""

MAX_DETAIL = 2000


class Answer(NamedTuple):
    """PostHog's answer: `body` is its JSON if the status is 200, else None; `code` and `detail` are those of an error."""

    response: requests.Response
    body: Any
    code: str = ""
    detail: str = "no detail given."

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status_code

    @property
    def is_too_big(self) -> bool:
        """True if a smaller request might be answered."""
        says_so = bool(TOO_BIG_WORDS.search(self.code) or TOO_BIG_WORDS.search(self.detail))
        return self.status in TOO_BIG or ((self.status == 400 or self.status >= 500) and says_so)

    @property
    def may_be_transient(self) -> bool:
        """True if PostHog may only be busy, although it also answers like this if too much was requested."""
        return self.status in RETRIED and self.status != 429 and not self.is_too_big


class Api:
    """A project's private API, with a personal API key. Threads may share it."""

    def __init__(self, url: str, project_id: str, api_key: str) -> None:
        self._project = f"{url}/api/projects/{project_id}"
        self._key = api_key
        self._session = new_session(Bearer(api_key))

    def ask(
        self,
        method: str,
        path: str,
        sleep: Callable[[float], object] = lambda seconds: time.sleep(seconds),
        may_be_too_big: bool = False,
        tries: int = TRIES,
        patience: float = PATIENCE_SECONDS,
        **request: Any,
    ) -> Answer:
        """Sends a request, retries it while that may help, and returns the answer. tries, patience: as in `RetryPolicy`.

        If the request may be too big, only a 429 is retried, and other errors that may be transient are returned. Raises
        `http.retry.Unavailable`, or `NotExtracted` if something in front of PostHog answers in its place to the last.
        """
        retry = RetryPolicy(tries, {429} if may_be_too_big else RETRIED, patience, pause=lambda seconds, _: sleep(seconds))
        limits = Limits(timeout=TIMEOUT_SECONDS)
        url = f"{self._project}/{path}/"
        attempt = 0
        while True:
            attempt += 1
            response = send(self._session, method, url, service="PostHog", retry=retry, limits=limits, **request)
            answer = self._read(response)
            if isinstance(answer, Answer):
                return answer
            if attempt == tries:
                raise NotExtracted(answer)
            wait = backoff(attempt)
            if wait >= 10:
                logger.info("PostHog: %s Trying again in %.0f s.", answer, wait)
            sleep(wait)

    def _read(self, response: requests.Response) -> Answer | str:
        """Returns the answer, or a sentence that says why it is not PostHog's."""
        status, body = response.status_code, _json(response)
        if status == 200:
            return _not_json(response) if body is None else Answer(response, body)
        content = body if isinstance(body, dict) else {}
        if 400 <= status < 500 and status not in RETRIED and "detail" not in content:
            return (
                f"POSTHOG_HOST answers {status}, but not as PostHog does: is it PostHog's own address, and does a proxy or"
                " firewall in front of it let API requests through?"
            )
        return Answer(
            response, None, self.clean(content.get("code", "")), self.clean(content.get("detail") or "no detail given.")
        )

    def clean(self, text: Any) -> str:
        """Returns PostHog's words on one line, without the key and email addresses, as they may quote a query's values."""
        return mask(without_keys(str(text)[:MAX_DETAIL], self._key))[:500]


def error_for(answer: Answer) -> NotExtracted:
    """Returns the error for an answer other than 200: it names the setting to correct."""
    status = answer.status
    if status == 401:
        return NotExtracted("POSTHOG_PERSONAL_API_KEY is not accepted by PostHog (401).")
    if status == 403:
        return NotExtracted("POSTHOG_PERSONAL_API_KEY lacks the scope Query Read, or access to POSTHOG_PROJECT_ID (403).")
    if status == 404:
        return NotExtracted("POSTHOG_PROJECT_ID is not found at POSTHOG_HOST (404): is it the project's region?")
    if 300 <= status < 400:
        return NotExtracted(f"POSTHOG_HOST redirects ({status}): set it to the address that it redirects to.")
    return NotExtracted(f"PostHog refused the request ({status}): {answer.detail}")


def _json(response: requests.Response) -> Any:
    """The answer's JSON, or None if it is not JSON."""
    try:
        return loads(response.content)
    except (ValueError, RecursionError):
        return None


def _not_json(response: requests.Response) -> str:
    if response.content.lstrip().startswith(b"<"):
        return "POSTHOG_HOST answers with a web page: set it to the address of PostHog itself."
    return "POSTHOG_HOST answers with something that is not JSON, or is cut short: set it to the address of PostHog itself."
