"""Customer.io's Track API over HTTP (its OpenAPI is the reference)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import requests

from cio_pipeline.customerio.pace import Pace
from cio_pipeline.http import send
from cio_pipeline.masking import mask

RETRIED = frozenset({408, 429, *range(500, 600)})
"""What may pass. Customer.io's own client names 408, 429 and the usual 5xx (customerio-node 5, lib/request.ts)."""

REFUSED = frozenset({400, 413, 422})
"""What is said of the request's content; 207 is said of some of its items."""

TRIES = 9
TIMEOUT_SECONDS = (10, 60)
UNKNOWN, IN_DETAIL = "no reason given", "no reason but in words"
REASON_CHARACTERS = 200
HOSTS = {"us": "track.customer.io", "eu": "track-eu.customer.io"}


class NotDelivered(Exception):
    """Customer.io takes nothing until a setting is mended; the message is one sentence that names it."""


class Unsettled(Exception):
    """Customer.io refused a request as a whole, or did not say which items; reason and detail as it gave them."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


class TrackClient:
    """The three calls the sink needs. It may be shared by threads."""

    def __init__(
        self,
        url: str,
        site_id: str,
        api_key: str,
        requests_per_second: float,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url = url
        self.requests = 0
        self.bytes = 0
        self.pace = Pace(requests_per_second)
        self._say = say
        self._session = requests.Session()
        self._session.auth = (site_id, api_key)
        self._session.trust_env = False
        self._session.headers["User-Agent"] = "cio_pipeline"
        self._session.mount(url, requests.adapters.HTTPAdapter(pool_maxsize=16))
        self._counting = threading.Lock()

    def check(self) -> None:
        """Asks for the account's region. Raises `NotDelivered` where the keys or the endpoint are wrong."""
        response = self._send("GET", "/api/v1/accounts/region", None)
        self._refuse_settings(response)
        if response.status_code != 200:
            raise self._not_the_track_api(response)
        theirs, ours = _serving_host(_json(response)), urlsplit(self.url).hostname or ""
        if ours.endswith(".customer.io") and theirs not in (None, ours):
            raise NotDelivered(f"CUSTOMERIO_TRACKING_ENDPOINT is {ours}, but this workspace is served by {theirs}.")

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
        """The errors of a 2xx answer, which may name items. Raises `Unsettled` where the content was refused as a whole."""
        self._refuse_settings(response)
        body = _json(response)
        errors = _errors(body)
        if response.status_code in REFUSED or (response.status_code == 207 and not errors):
            reason, detail = _reason(errors)
            raise Unsettled(f"{response.status_code} {reason}", detail)
        if not response.ok or (body is None and response.content.strip()):
            raise self._not_the_track_api(response)
        return errors

    def _not_the_track_api(self, response: requests.Response) -> NotDelivered:
        return NotDelivered(
            f"CUSTOMERIO_TRACKING_ENDPOINT ({self.url}) did not answer as Customer.io's Track API does:"
            f" status {response.status_code} for {urlsplit(response.url).path.partition('/customers/')[0]}."
        )

    def _refuse_settings(self, response: requests.Response) -> None:
        if response.status_code in (401, 403):
            raise NotDelivered(
                f"CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY are not accepted by Customer.io ({response.status_code}):"
                " they must be a Tracking API site ID and key of this workspace."
            )
        if 300 <= response.status_code < 400:
            elsewhere = urlsplit(response.headers.get("Location", "")).hostname or "elsewhere"
            raise NotDelivered(
                f"CUSTOMERIO_TRACKING_ENDPOINT ({self.url}) sends to {elsewhere} (status {response.status_code}):"
                " is it the workspace's region?"
            )

    def _send(self, method: str, path: str, body: bytes | None) -> requests.Response:
        def turn() -> None:
            self.pace.wait()
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
            before_each=turn,
            rest=self.pace.rest,
            say=self._say,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=TIMEOUT_SECONDS,
        )


def _json(response: requests.Response) -> dict[str, Any] | None:
    try:
        body = response.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None


def _serving_host(account: dict[str, Any] | None) -> str | None:
    """The host of an answer of `accounts/region`; older ones gave `data_center` instead of `region`, and no `url`."""
    given = account or {}
    region = str(given.get("region") or given.get("data_center") or "").lower()
    return urlsplit(str(given.get("url") or "")).hostname or HOSTS.get(region)


def _errors(body: dict[str, Any] | None) -> list[Any]:
    """v2: {"errors": [...]}; v1: {"meta": {"error": "..."}} or {"meta": {"errors": ["..."]}} (OpenAPI, and what v1 answers)."""
    given = body or {}
    meta = given.get("meta")
    found = given.get("errors") or (isinstance(meta, dict) and (meta.get("errors") or meta.get("error"))) or []
    return found if isinstance(found, list) else [found]


def _reason(errors: list[Any]) -> tuple[str, str]:
    """What the first error says: its reason and field, without the data its message may quote, and the whole of it."""
    error = errors[0] if errors else {}
    if not isinstance(error, dict):
        return IN_DETAIL, _utf8(error)
    said = " ".join(_utf8(error[part]) for part in ("reason", "field") if error.get(part))
    return mask(said)[:REASON_CHARACTERS] or UNKNOWN, _utf8(error.get("message") or "")


def _utf8(said: Any) -> str:
    """A text that was cut within a character is not UTF-8, and could not be kept."""
    return str(said).encode("utf-8", "replace").decode()
