"""Customer.io's Track API over HTTP (contracts/customerio-track-openapi.json)."""

from __future__ import annotations

import threading
import time
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from cio_pipeline.http import send

RETRIED = frozenset({408, 429, 500, 502, 503, 504, 522, 524})
"""What Customer.io's own client tries again (customerio-node 5, lib/request.ts)."""

TRIES = 9
TIMEOUT_SECONDS = (10, 60)
UNKNOWN = "no reason given"


class NotDelivered(Exception):
    """Customer.io takes nothing until a setting is mended; the message is one sentence that names it."""


class Unsettled(Exception):
    """Customer.io refused a request as a whole, or did not say which items; reason and detail as it gave them."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class Pace:
    """At most so many requests a second, over all threads that share it."""

    def __init__(self, per_second: float) -> None:
        self._interval, self._next, self._lock = 1 / per_second, 0.0, threading.Lock()

    def wait(self) -> None:
        """Returns when the next request may go."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self._interval
        time.sleep(turn - now)


class TrackClient:
    """The three calls the sink needs. It may be shared by threads."""

    def __init__(self, url: str, site_id: str, api_key: str, requests_per_second: float) -> None:
        self.url = url
        self.requests = 0
        self.bytes = 0
        self._session = requests.Session()
        self._session.auth = (site_id, api_key)
        self._session.trust_env = False
        self._session.headers["User-Agent"] = "cio_pipeline"
        self._session.mount(url, requests.adapters.HTTPAdapter(pool_maxsize=16))
        self._pace = Pace(requests_per_second)
        self._counting = threading.Lock()

    def check(self) -> None:
        """Asks for the account's region. Raises `NotDelivered` where the keys or the endpoint are wrong."""
        response = self._send("GET", "/api/v1/accounts/region", None)
        self._refuse_settings(response)
        if response.status_code != 200:
            raise NotDelivered(
                f"CUSTOMERIO_TRACKING_ENDPOINT ({self.url}) did not answer as Customer.io's Track API does:"
                f" status {response.status_code} for /api/v1/accounts/region."
            )
        theirs, ours = str(_json(response).get("url") or ""), urlsplit(self.url).hostname or ""
        if ours.endswith(".customer.io") and urlsplit(theirs).hostname not in (None, ours):
            raise NotDelivered(
                f"CUSTOMERIO_TRACKING_ENDPOINT is {ours}, but this workspace is served by {urlsplit(theirs).hostname}."
            )

    def batch(self, operations: list[bytes]) -> dict[int, tuple[str, str]]:
        """Posts operations to `/api/v2/batch`; gives those refused, by index: (reason, detail). The rest is accepted.

        Raises `Unsettled` where the answer does not say which were refused, `NotDelivered` and `http.Unavailable`.
        """
        response = self._send("POST", "/api/v2/batch", b'{"batch":[' + b",".join(operations) + b"]}")
        errors = self._errors(response)
        refused: dict[int, tuple[str, str]] = {}
        for error in errors:
            index = error.get("batch_index") if isinstance(error, dict) else None
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(operations):
                raise Unsettled(*_reason(errors))
            refused.setdefault(index, _reason([error]))
        return refused

    def event(self, identifier: str, operation: bytes) -> None:
        """Posts one event's body to the v1 call. Raises `Unsettled` where it is refused."""
        response = self._send("POST", f"/api/v1/customers/{quote(identifier, safe='')}/events", operation)
        if errors := self._errors(response):
            raise Unsettled(*_reason(errors))

    def _errors(self, response: requests.Response) -> list[Any]:
        """The errors of a 2xx answer, which may name items. Raises `Unsettled` for any other."""
        self._refuse_settings(response)
        errors = _errors(_json(response))
        if response.ok:
            return errors
        reason, detail = _reason(errors)
        raise Unsettled(f"{response.status_code} {reason}", detail)

    def _refuse_settings(self, response: requests.Response) -> None:
        if response.status_code in (401, 403):
            raise NotDelivered(
                f"CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY are not accepted by Customer.io ({response.status_code}):"
                " they must be a Tracking API site ID and key of this workspace."
            )
        if 300 <= response.status_code < 400:
            raise NotDelivered(
                f"CUSTOMERIO_TRACKING_ENDPOINT ({self.url}) sends elsewhere (status {response.status_code}):"
                " is it the workspace's region?"
            )

    def _send(self, method: str, path: str, body: bytes | None) -> requests.Response:
        with self._counting:
            self.requests += 1
            self.bytes += len(body or b"")
        return send(
            self._session,
            method,
            self.url + path,
            service="Customer.io",
            retried=RETRIED,
            tries=TRIES,
            before_each=self._pace.wait,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=TIMEOUT_SECONDS,
        )


def _json(response: requests.Response) -> dict[str, Any]:
    try:
        body = response.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _errors(body: dict[str, Any]) -> list[Any]:
    """v2: {"errors": [...]}; v1: {"meta": {"error": "..."}} or {"meta": {"errors": ["..."]}} (DOC-inv, OpenAPI)."""
    meta = body.get("meta")
    found = body.get("errors") or (isinstance(meta, dict) and (meta.get("errors") or meta.get("error"))) or []
    return found if isinstance(found, list) else [found]


def _reason(errors: list[Any]) -> tuple[str, str]:
    """What the first error says: its reason and field, without the data its message may quote, and the whole of it."""
    error = errors[0] if errors else {}
    if not isinstance(error, dict):
        return UNKNOWN, str(error)
    said = [str(error[part]) for part in ("reason", "field") if error.get(part)]
    return " ".join(said) or UNKNOWN, str(error.get("message") or "")
