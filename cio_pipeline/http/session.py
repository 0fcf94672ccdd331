"""Sessions that take proxies and a CA from the environment, but never credentials from `.netrc`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import requests
import urllib3
from requests.auth import AuthBase, HTTPBasicAuth
from requests.structures import CaseInsensitiveDict
from requests.utils import get_auth_from_url

MAX_PREPARED = 8


class Bearer(AuthBase):
    """Adds a bearer token to each request of a session."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Returns the request with the token."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def new_session(auth: AuthBase | None = None, url: str | None = None) -> requests.Session:
    """Returns a session with the proxies and the CA of the environment, as requests reads them, but without `.netrc`.

    requests would read credentials from there if a session had no auth. So without `auth`, the session uses those in each URL,
    or none. With `url`, it is for that service only, and reads the environment once instead of before each request.
    """
    session = _Session()
    session.auth = auth or _login_of_the_url
    if url is not None:
        environment = session.merge_environment_settings(url, {}, None, None, None)
        session.proxies, session.verify, session.trust_env = environment["proxies"], environment["verify"], False
    return session


class _Session(requests.Session):
    """A session that ignores redirects completely: to see where one leads, requests would first read the whole body."""

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Returns None: no redirect is followed."""


def _login_of_the_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    user, password = get_auth_from_url(request.url or "")
    return HTTPBasicAuth(user, password)(request) if user or password else request


class PreparedSession:
    """Sends requests like a session, but in half the time, as it prepares the request for each URL only once.

    It uses the session's connections, with its credentials, proxies and CA, but no cookies. Threads may share it.
    """

    def __init__(self, session: requests.Session) -> None:
        """session: one that does not read the environment before each request (`new_session` with a URL)."""
        self._session = session
        self._prepared = lru_cache(MAX_PREPARED)(self._prepare)

    def request(
        self, method: str, url: str, *, headers: Mapping[str, str], data: bytes | None, timeout: tuple[float, float], **_: bool
    ) -> requests.Response:
        """Does what `Session.request` does with `stream` and without `allow_redirects`: the body is still to be read.

        Raises what that raises, or what urllib3 raises.
        """
        request, pool, target = self._prepared(method, url, tuple(headers.items()))
        raw = pool.urlopen(
            method,
            target,
            data,
            request.headers,
            retries=False,
            redirect=False,
            assert_same_host=False,
            timeout=urllib3.Timeout(*timeout),
            preload_content=False,
            decode_content=False,
        )
        response = requests.Response()
        response.raw, response.status_code, response.headers = raw, raw.status, CaseInsensitiveDict(raw.headers)
        response.url = url
        return response

    def _prepare(
        self, method: str, url: str, headers: tuple[tuple[str, str], ...]
    ) -> tuple[requests.PreparedRequest, urllib3.HTTPConnectionPool, str]:
        """The request without its body, the connection pool, and the request target (for a proxy, the whole URL)."""
        session, request = self._session, self._session.prepare_request(requests.Request(method, url, dict(headers)))
        request.headers.pop("Content-Length", None)
        adapter: Any = session.get_adapter(url)
        pool = adapter.get_connection_with_tls_context(request, session.verify, session.proxies)
        adapter.cert_verify(pool, request.url, session.verify, None)
        return request, pool, adapter.request_url(request, session.proxies)
