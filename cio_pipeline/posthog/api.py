"""PostHog's private API: one project, one key, answers as JSON or a sentence that says what to mend."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import requests

from cio_pipeline.connector.jsontext import loads
from cio_pipeline.http import Bearer, new_session, send
from cio_pipeline.masking import mask
from cio_pipeline.posthog.source import NotExtracted, Say

RETRIED = frozenset({408, 429, *range(500, 600)})
TOO_BIG = frozenset({504, 512})
"""The query ran out of its time or memory: a smaller one may not."""

TRIES = 9
TIMEOUT_SECONDS = (10, 150)

PATIENCE_SECONDS = 6 * 3600
"""A 429 is waited out for so long: an hourly read budget that is spent, or three queries of others, must not fail a day."""


class CutShort(Exception):
    """The answer is no whole JSON, although its status is 200."""


class Answer(NamedTuple):
    """PostHog's answer; `body` is its JSON where the status is 200, else None."""

    response: requests.Response
    body: Any

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.response.status_code


class Api:
    """A project's private API, with a personal API key. One thread may use it, or several."""

    def __init__(self, url: str, project_id: str, api_key: str) -> None:
        self._project = f"{url}/api/projects/{project_id}"
        self._session = new_session(Bearer(api_key))

    def ask(
        self,
        method: str,
        path: str,
        say: Say,
        sleep: Callable[[float], object] = lambda seconds: time.sleep(seconds),
        may_be_too_big: bool = False,
        **request: Any,
    ) -> Answer:
        """The answer, after as many tries as may help; "too big" is one only where it may be. Raises `http.Unavailable`."""
        read: list[Any] = []

        def fault_in(response: requests.Response) -> str | None:
            try:
                read[:] = [_json(response)] if response.status_code == 200 else []
            except CutShort:
                return "its answer is no whole JSON"
            return None

        response = send(
            self._session,
            method,
            f"{self._project}/{path}/",
            service="PostHog",
            retried=RETRIED - TOO_BIG if may_be_too_big else RETRIED,
            tries=TRIES,
            patience=PATIENCE_SECONDS,
            say=say,
            rest=lambda seconds, _: sleep(seconds),
            fault_in=fault_in,
            timeout=TIMEOUT_SECONDS,
            **request,
        )
        return Answer(response, read[0] if read else None)


def refused(answer: Answer) -> NotExtracted:
    """What an answer other than 200 means, by the setting to mend."""
    status = answer.status
    if status == 401:
        return NotExtracted("POSTHOG_PERSONAL_API_KEY is not accepted by PostHog (401).")
    if status == 403:
        return NotExtracted("POSTHOG_PERSONAL_API_KEY lacks the scope Query Read, or access to POSTHOG_PROJECT_ID (403).")
    if status == 404:
        return NotExtracted("POSTHOG_PROJECT_ID is not found at POSTHOG_HOST (404): is it the project's region?")
    if 300 <= status < 400:
        return NotExtracted(f"POSTHOG_HOST sends elsewhere ({status}): give the address it sends to.")
    return NotExtracted(f"PostHog refused the request ({status}): {_detail(answer.response)}")


def _json(response: requests.Response) -> Any:
    """The answer's JSON. Raises `CutShort`, upon which `send` tries again, or `NotExtracted` for a web page."""
    try:
        return loads(response.content)
    except ValueError as broken:
        if response.content.lstrip().startswith(b"<"):
            raise NotExtracted("POSTHOG_HOST answers with a web page: give the address of PostHog itself.") from broken
        raise CutShort from broken


def _detail(response: requests.Response) -> str:
    try:
        return mask(str(response.json()["detail"]))[:500]  # it may quote a query's values
    except (ValueError, KeyError, TypeError):
        return "no detail given."
