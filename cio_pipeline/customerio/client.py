"""Customer.io's Track API over HTTP (its OpenAPI is the reference)."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlsplit

import requests
from requests.auth import HTTPBasicAuth

from cio_pipeline.customerio.rate_limit import RateLimit
from cio_pipeline.errors import PipelineError
from cio_pipeline.http_retry import Fault, FewUrls, Unavailable, Unusable, new_session, send
from cio_pipeline.masking import mask, printable, without_keys

RETRIED = frozenset({408, 429, *range(500, 600)})
"""What may pass. Customer.io's own client names 408, 429 and the usual 5xx (customerio-node 5, lib/request.ts)."""

REFUSED = frozenset({400, 413, 422})
"""What is said of the request's content; 207 is said of some of its items."""

TRIES = 9
TRIES_OF_THE_CHECK = 3
"""Before anything is sent, an answer of something else is more likely a wrong address than a passing fault."""

TIMEOUT_SECONDS = (10, 60)
ANSWER_SECONDS = 120.0
ANSWER_BYTES = 16 << 20
"""A 207 has a few hundred bytes for each of its items."""

UNKNOWN, IN_DETAIL, WEB_PAGE = "no reason given", "no reason but in words", "a web page"
REASON_CHARACTERS = 200

A_FEW = 9
"""So many items of a run may well be all that there are, and each have what a firewall does not let through."""

HOSTS = {"us": "track.customer.io", "eu": "track-eu.customer.io"}
REGION, BATCH = "/api/v1/accounts/region", "/api/v2/batch"

PROBE = b'{"type":"person","action":"identify","identifiers":{"id":"harmless.cio_pipeline"},"attributes":{"_update":true}}'
"""A request that changes nothing, to see whether Customer.io accepts any: an upsert of nobody
(`_update`: "If no person matches the identifiers, the request does nothing")."""


class NotDelivered(PipelineError):
    """Customer.io takes nothing until a setting is mended; the message is one sentence that names it."""


class UnnamedRefusal(Exception):
    """Customer.io refused a request as a whole, or did not say which items; reason and detail as it gave them.

    own_faults: of how many items that are refused so, and none of their kind accepted, each may be at fault itself.
    """

    def __init__(self, reason: str, detail: str, own_faults: int = 0) -> None:
        super().__init__(reason)
        self.reason, self.detail, self.own_faults = reason, detail, own_faults


class TrackClient:
    """The calls the sink needs. It may be shared by threads.

    Only what the Track API answers counts: anything else is tried again, and `http_retry.Unusable` is raised at last.
    """

    def __init__(self, url: str, site_id: str, api_key: str, requests_per_second: float) -> None:
        self.url = url
        self.requests = 0
        self.bytes = 0
        self.rate_limit = RateLimit(requests_per_second)
        self.accepted: dict[str, tuple[bytes, str | None]] = {}  # the last event of each kind: a copy is ignored, by its id
        self._keys = (api_key, site_id)
        session = new_session(HTTPBasicAuth(site_id, api_key), url)
        session.headers["User-Agent"] = "cio_pipeline"
        session.mount(url, requests.adapters.HTTPAdapter(pool_maxsize=16))
        self._session = FewUrls(session)
        self._counting = threading.Lock()

    def check(self) -> None:
        """Asks for the account's region. Raises `NotDelivered` where the keys or the endpoint are wrong."""
        try:
            response = self._send("GET", REGION, None, _fault_in_region)
        except Unusable as odd:
            sentence = str(odd)
        else:
            self._refuse_settings(response)
            theirs, ours = _serving_host(_json(response)), urlsplit(self.url).hostname or ""
            if theirs == ours or not ours.endswith(".customer.io"):
                return
            served = without_keys(mask(theirs or "another"), *self._keys)
            sentence = f"CUSTOMERIO_TRACKING_ENDPOINT is {ours}, but this workspace is served by {served}."
        raise NotDelivered(sentence)

    def batch(self, operations: list[bytes]) -> dict[int, tuple[str, str]]:
        """Posts operations to `/api/v2/batch`; gives those refused, by index: (reason, detail). The rest is accepted.

        Raises `UnnamedRefusal` where the answer does not say which were refused, `NotDelivered` and `http_retry.Unavailable`.
        """
        errors = self._post(BATCH, _body(operations))
        refused: dict[int, tuple[str, str]] = {}
        for error in errors:
            index = error.get("batch_index") if isinstance(error, dict) else None
            if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(operations):
                raise UnnamedRefusal(*self._without_keys(_reason(errors)), own_faults=_names_an_item(errors))
            refused.setdefault(index, self._without_keys(_reason([error])))
        return refused

    def event(self, identifier: str, operation: bytes) -> None:
        """Posts one event's body to the v1 call. Raises `UnnamedRefusal` where it is refused."""
        if errors := self._post(f"/api/v1/customers/{quote(identifier, safe='')}/events", operation):
            raise UnnamedRefusal(*self._without_keys(_reason(errors)), own_faults=1)

    def probe(self, operation: bytes = PROBE, identifier: str | None = None, what: str = "whatever it is sent") -> None:
        """Posts a request that changes nothing: `PROBE`, or one accepted before, by the v1 call if there is an `identifier`.

        Raises `http_retry.Unavailable` where Customer.io refuses it, by name or not: it would refuse all, or all of that kind.
        """
        refused: dict[int, tuple[str, str]] = {}
        try:
            if identifier is None:
                refused = self.batch([operation])
            else:
                self.event(identifier, operation)
        except UnnamedRefusal as unnamed:
            refused = {0: (unnamed.reason, unnamed.detail)}
        if not refused:
            return
        reason, detail = refused[0]
        words = f"{reason}: {mask(detail)[:REASON_CHARACTERS]}" if detail else reason
        raise Unavailable(f"Customer.io ({urlsplit(self.url).hostname}) refuses {what}, with {words}: a rerun sends it.")

    def _post(self, path: str, body: bytes) -> list[Any]:
        """The errors of an answer, which may name items. Raises `UnnamedRefusal` where the content was refused as a whole."""
        response = self._send("POST", path, body, _fault_in_post)
        if response.status_code in (401, 403):
            self.check()  # it raises, if it is the keys
        self._refuse_redirect(response)
        parsed = _json(response)
        errors = _errors(parsed)
        if response.status_code != 200 and (response.status_code != 207 or not errors):
            reason, detail = self._without_keys(_reason(errors) if parsed is not None else _page(response))
            own_faults = _own_faults(path, response.status_code, parsed)
            raise UnnamedRefusal(f"{response.status_code} {reason}", detail, own_faults)
        return errors

    def _without_keys(self, refusal: tuple[str, str]) -> tuple[str, str]:
        """Reason and detail of an answer, which may quote what it was asked with."""
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
            elsewhere = without_keys(mask(_host(response.headers.get("Location", "")) or "elsewhere"), *self._keys)
            raise NotDelivered(
                f"CUSTOMERIO_TRACKING_ENDPOINT ({self.url}) sends to {elsewhere} (status {response.status_code}):"
                " is it the workspace's region?"
            )

    def _send(
        self, method: str, path: str, body: bytes | None, fault_in: Callable[[requests.Response], Fault | None]
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
            retried=RETRIED,
            tries=TRIES,
            before_each=turn,
            pause=self.rate_limit.pause,
            fault_in=fault_in,
            most_bytes=ANSWER_BYTES,
            seconds=ANSWER_SECONDS,
            data=body,
            headers={"Content-Type": "application/json"},
            timeout=TIMEOUT_SECONDS,
        )


def _body(operations: list[bytes]) -> bytes:
    """A batch. It may have half a megabyte, and is copied together but once."""
    parts = list(operations)
    parts[0] = b'{"batch":[' + parts[0]
    parts[-1] += b"]}"
    return b",".join(parts)


def _fault_in_region(response: requests.Response) -> Fault | None:
    if response.status_code == 403 and _json(response) is None:
        return Fault("a firewall or proxy in between refuses it (status 403): may this machine reach it?", TRIES_OF_THE_CHECK)
    if response.status_code in (401, 403, *range(300, 400)):
        return None
    if response.status_code == 200 and _serving_host(_json(response)):
        return None
    return _not_the_track_api(response, TRIES_OF_THE_CHECK)


def _fault_in_post(response: requests.Response) -> Fault | None:
    """An acknowledgement is a 200 with nothing in its object, or with errors; what is refused has a status of its own."""
    if response.status_code in (207, 401, 403, *REFUSED, *range(300, 400)):
        return None
    parsed = _json(response)
    if response.status_code == 200 and (parsed in ({}, {"errors": []}) or _errors(parsed)):
        return None
    return _not_the_track_api(response, TRIES)


def _not_the_track_api(response: requests.Response, tries: int) -> Fault:
    path = urlsplit(response.url).path.partition("/customers/")[0]
    fault = f"it did not answer as the Track API does (status {response.status_code} for {path})"
    return Fault(f"{fault}: is CUSTOMERIO_TRACKING_ENDPOINT right?", tries)


def _json(response: requests.Response) -> dict[str, Any] | None:
    """The object that an answer is, in UTF-8; None where it is none, or has a name twice, so that one may hide the other."""
    try:
        parsed = json.loads(response.content.decode("utf-8", "replace"), object_pairs_hook=_each_once)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, dict) else None


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _serving_host(account: dict[str, Any] | None) -> str | None:
    """The host that an answer of `accounts/region` names; older ones have `data_center` for `region`, and no `url`."""
    given = account or {}
    region = str(given.get("region") or given.get("data_center") or "").lower()
    if region not in HOSTS and _host(given.get("url")) not in HOSTS.values():
        return None
    return _host(given.get("url")) or HOSTS.get(region)


def _host(url: Any) -> str | None:
    try:
        return urlsplit(url).hostname if isinstance(url, str) else None
    except ValueError:
        return None


def _errors(body: dict[str, Any] | None) -> list[Any]:
    """v2: {"errors": [...]}; v1: {"meta": {"error": "..."}} or {"meta": {"errors": ["..."]}} (OpenAPI, and what v1 answers)."""
    given = body or {}
    meta = given.get("meta")
    found = given.get("errors") or (isinstance(meta, dict) and (meta.get("errors") or meta.get("error"))) or []
    return found if isinstance(found, list) else [found]


def _own_faults(path: str, status: int, parsed: dict[str, Any] | None) -> int:
    """The most items that this answer may refuse for good, where it refuses all of their kind; 0: the fault is the service's.

    413 is about an item's size, and a page with 403 is a firewall's, about what is in it; no other page is about an item. The
    v1 call has but one event, which words of the Track API are about, unless the status says otherwise (401: keys).
    """
    if status == 401:
        return 0
    if status == 413 or (status == 403 and parsed is None):
        return A_FEW if status == 413 or path == BATCH else 1
    errors = _errors(parsed)
    return int(_names_an_item(errors) or (path != BATCH and bool(errors)))


def _names_an_item(errors: list[Any]) -> bool:
    """Whether an error has a field, or the number of an item that is alone."""
    found = [error for error in errors if isinstance(error, dict)]
    return any(error.get("field") or (type(error.get("batch_index")) is int and error["batch_index"] == 0) for error in found)


def _reason(errors: list[Any]) -> tuple[str, str]:
    """What the first error says: its reason and field, without the data its message may quote, and the whole of it."""
    error = errors[0] if errors else {}
    if not isinstance(error, dict):
        return IN_DETAIL, _text(error)
    reason = " ".join(str(error[part]) for part in ("reason", "field") if error.get(part))
    return mask(_text(reason))[:REASON_CHARACTERS] or UNKNOWN, _text(error.get("message") or "")


def _page(response: requests.Response) -> tuple[str, str]:
    """What an answer says that is no JSON object: a firewall's or a proxy's."""
    start = response.content[:10_000].decode("utf-8", "replace")
    words = " ".join(re.sub(r"(?s)<(script|style)\b.{0,5000}?</\1>|<[^>]{0,500}>", " ", start).split())
    return (WEB_PAGE if "<" in start else UNKNOWN), _text(words)


def _text(value: Any) -> str:
    """A text that was cut within a character is not UTF-8, and could not be kept."""
    return printable(str(value).encode("utf-8", "replace").decode())
