"""Customer.io's Track API over HTTP (its OpenAPI is the reference)."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.auth import HTTPBasicAuth

from cio_pipeline.customerio.answers import (
    REASON_CHARACTERS,
    errors_in,
    first_reason,
    host,
    json_object,
    max_items_at_fault,
    names_an_item,
    page_text,
    serving_host,
)
from cio_pipeline.customerio.rate_limit import RateLimit
from cio_pipeline.errors import PipelineError
from cio_pipeline.http.attempt import Limits
from cio_pipeline.http.errors import Problem
from cio_pipeline.http.retry import RETRIED, RetryPolicy, Unavailable, UnusableAnswer, send
from cio_pipeline.http.session import PreparedSession, new_session
from cio_pipeline.masking import mask, without_keys

REFUSED = frozenset({400, 413, 422})
"""Statuses that are about the request's content; 207 is about some of its items."""

TRIES = 9
TRIES_OF_THE_CHECK = 3
"""Before anything is sent, an answer that is not Customer.io's more likely means a wrong address than a passing fault."""

TIMEOUT_SECONDS = (10, 60)
ANSWER_SECONDS = 120.0
MAX_ANSWER_BYTES = 16 << 20
"""A 207 has a few hundred bytes for each of its items."""

REGION, BATCH = "/api/v1/accounts/region", "/api/v2/batch"

PROBE = b'{"type":"person","action":"identify","identifiers":{"id":"harmless.cio_pipeline"},"attributes":{"_update":true}}'
"""A request that changes nothing, to see whether Customer.io accepts anything: an upsert of nobody (`_update`: "If no person
matches the identifiers, the request does nothing")."""


CUSTOMER = "customer"
"""The kind of an upsert in `TrackClient.accepted`; the others are kinds of events."""


class NotDelivered(PipelineError):
    """Nothing can be delivered until something is changed; the message is one sentence that says what."""


class WholeRequestRefused(Exception):
    """Customer.io refused a whole request, or did not say which of its items; reason and detail are its own.

    max_at_fault: how many items may be at fault themselves if they are refused like this, and none of their kind is accepted.
    """

    def __init__(self, reason: str, detail: str, max_at_fault: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.max_at_fault = reason, detail, max_at_fault


class TrackClient:
    """The calls that a delivery needs. Threads may share it.

    Only an answer of the Track API counts: any other is retried, and finally raises `http.retry.UnusableAnswer`.
    """

    def __init__(self, url: str, site_id: str, api_key: str, requests_per_second: float) -> None:
        self.url = url
        self.requests = 0
        self.bytes = 0
        self.rate_limit = RateLimit(requests_per_second)
        self.accepted: dict[str, tuple[bytes, str | None]] = {}  # the last operation of each kind, and its v1 identifier
        self._keys = (api_key, site_id)
        session = new_session(HTTPBasicAuth(site_id, api_key), url)
        session.headers["User-Agent"] = "cio_pipeline"
        session.mount(url, requests.adapters.HTTPAdapter(pool_maxsize=16))
        self._session = PreparedSession(session)
        self._counting = threading.Lock()

    def start_day(self) -> None:
        """Begins the requests of a day. An event of an earlier day may be sent once more, as Customer.io ignores the copy; an
        upsert may not, as this day may give the customer something newer."""
        self.accepted.pop(CUSTOMER, None)
        self.rate_limit.start()

    def check(self) -> None:
        """Requests the account's region. Raises `NotDelivered` if the keys or the endpoint are wrong."""
        try:
            response = self._request("GET", REGION, None, _problem_in_region)
        except UnusableAnswer as odd:
            sentence = str(odd)
        else:
            self._refuse_settings(response)
            theirs, ours = serving_host(json_object(response)), urlsplit(self.url).hostname or ""
            if theirs == ours or not ours.endswith(".customer.io"):
                return
            served = without_keys(mask(theirs or "another"), *self._keys)
            sentence = f"CUSTOMERIO_TRACKING_ENDPOINT is {ours}, but this workspace is served by {served}."
        raise NotDelivered(sentence)

    def batch(self, operations: Sequence[bytes | memoryview]) -> dict[int, tuple[str, str]]:
        """Posts operations to `/api/v2/batch`. Returns (reason, detail) of those refused, by index; the others are accepted.

        Raises `WholeRequestRefused` if the answer does not say which were refused, `NotDelivered` and
        `http.retry.Unavailable`.
        """
        errors = self._post(BATCH, _body(operations))
        refused: dict[int, tuple[str, str]] = {}
        for error in errors:
            index = error.get("batch_index") if isinstance(error, dict) else None
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(operations):
                at_fault = 1 if names_an_item(errors) else 0
                raise WholeRequestRefused(*self._without_keys(first_reason(errors)), at_fault)
            refused.setdefault(index, self._without_keys(first_reason([error])))
        return refused

    def event(self, identifier: str, operation: bytes) -> None:
        """Posts one event's body to the v1 call. Raises `WholeRequestRefused` if it is refused."""
        if errors := self._post(f"/api/v1/customers/{quote(identifier, safe='')}/events", operation):
            raise WholeRequestRefused(*self._without_keys(first_reason(errors)), max_at_fault=1)

    def probe(
        self,
        operation: bytes = PROBE,
        identifier: str | None = None,
        what: str = "every request, even one that changes nothing",
    ) -> None:
        """Posts a request that changes nothing: `PROBE`, or one accepted before, by the v1 call if there is an `identifier`.

        Raises `http.retry.Unavailable` if Customer.io refuses it, by name or not: it would refuse all, or all of that kind.
        """
        refused: dict[int, tuple[str, str]] = {}
        try:
            if identifier is None:
                refused = self.batch([operation])
            else:
                self.event(identifier, operation)
        except WholeRequestRefused as unnamed:
            refused = {0: (unnamed.reason, unnamed.detail)}
        if not refused:
            return
        reason, detail = refused[0]
        words = f"{reason}: {mask(detail)[:REASON_CHARACTERS]}" if detail else reason
        where = urlsplit(self.url).hostname
        raise Unavailable(
            f"Customer.io ({where}) refuses {what} ({words}): the items are not at fault, and a rerun sends them."
        )

    def _post(self, path: str, body: bytes) -> list[Any]:
        """Posts a body. Returns the answer's errors, which may name items. Raises `WholeRequestRefused` if all of it was
        refused."""
        response = self._request("POST", path, body, _problem_in_post)
        if response.status_code in (401, 403):
            self.check()  # it raises, if it is the keys
        self._refuse_redirect(response)
        parsed = json_object(response)
        errors = errors_in(parsed)
        if response.status_code != 200 and (response.status_code != 207 or not errors):
            reason, detail = self._without_keys(first_reason(errors) if parsed is not None else page_text(response))
            at_fault = max_items_at_fault(response.status_code, parsed, is_batch=path == BATCH)
            raise WholeRequestRefused(f"{response.status_code} {reason}", detail, at_fault)
        return errors

    def _without_keys(self, refusal: tuple[str, str]) -> tuple[str, str]:
        """Returns the reason and detail of an answer, which may quote the request, without the keys."""
        reason, detail = refusal
        return without_keys(reason, *self._keys), without_keys(detail, *self._keys)

    def _refuse_settings(self, response: requests.Response) -> None:
        if response.status_code in (401, 403):
            raise NotDelivered(
                f"CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY are not accepted by Customer.io ({response.status_code}):"
                " they must be a Tracking API site ID and key of this workspace."
            )
        self._refuse_redirect(response)

    def _refuse_redirect(self, response: requests.Response) -> None:
        if 300 <= response.status_code < 400:
            elsewhere = without_keys(mask(host(response.headers.get("Location", "")) or "elsewhere"), *self._keys)
            raise NotDelivered(
                f"CUSTOMERIO_TRACKING_ENDPOINT ({self.url}) sends to {elsewhere} (status {response.status_code}):"
                " is it the workspace's region?"
            )

    def _request(
        self, method: str, path: str, body: bytes | None, problem_in: Callable[[requests.Response], Problem | None]
    ) -> requests.Response:
        def turn() -> None:
            self.rate_limit.wait()
            with self._counting:
                self.requests += 1
                self.bytes += len(body or b"")

        return send(
            self._session,
            method,
            self.url + path,
            service="Customer.io",
            retry=RetryPolicy(TRIES, RETRIED, problem_in=problem_in, before_each=turn, pause=self.rate_limit.pause),
            limits=Limits(MAX_ANSWER_BYTES, ANSWER_SECONDS, TIMEOUT_SECONDS),
            data=body,
            headers={"Content-Type": "application/json"},
        )


def _body(operations: Sequence[bytes | memoryview]) -> bytes:
    """Returns the body of a batch. It may be half a megabyte, so it is joined only once."""
    parts = list(operations)
    parts[0] = b'{"batch":[' + bytes(parts[0])
    parts[-1] = bytes(parts[-1]) + b"]}"
    return b",".join(parts)


def _problem_in_region(response: requests.Response) -> Problem | None:
    if response.status_code == 403 and json_object(response) is None:
        return Problem("a firewall or proxy in between refuses it (status 403): may this machine reach it?", TRIES_OF_THE_CHECK)
    if response.status_code in (401, 403, *range(300, 400)):
        return None
    if response.status_code == 200 and serving_host(json_object(response)):
        return None
    return _not_the_track_api(response, TRIES_OF_THE_CHECK)


def _problem_in_post(response: requests.Response) -> Problem | None:
    """Returns the problem of an answer, if any. An acknowledgement is a 200 with an empty object, or with errors; a refusal has
    another status."""
    if response.status_code in (207, 401, 403, *REFUSED, *range(300, 400)):
        return None
    parsed = json_object(response)
    if response.status_code == 200 and (parsed in ({}, {"errors": []}) or errors_in(parsed)):
        return None
    return _not_the_track_api(response, TRIES)


def _not_the_track_api(response: requests.Response, tries: int) -> Problem:
    path = urlsplit(response.url).path.partition("/customers/")[0]
    problem = f"it did not answer as the Track API does (status {response.status_code} for {path})"
    return Problem(f"{problem}: is CUSTOMERIO_TRACKING_ENDPOINT right?", tries)
