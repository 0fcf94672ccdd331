"""Sessions that take proxies and a CA from the environment, and credentials from nowhere else than they are given."""

from __future__ import annotations

import requests
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url


class Bearer(AuthBase):
    """A bearer token for each request of a session."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """The request with the token."""
        request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def new_session(auth: AuthBase | None = None, url: str | None = None) -> requests.Session:
    """A session with the proxies and the CA that the environment names, as requests reads them, but without `.netrc`.

    requests would take credentials from there where a session has none of its own: without `auth`, a session has those of
    each URL, or none. With a URL, the session is for that one alone, and the environment is read now, instead of before each
    request.
    """
    session = requests.Session()
    session.auth = auth or _login_of_the_url
    if url is not None:
        found = session.merge_environment_settings(url, {}, None, None, None)
        session.proxies, session.verify, session.trust_env = found["proxies"], found["verify"], False
    return session


def _login_of_the_url(request: requests.PreparedRequest) -> requests.PreparedRequest:
    user, password = get_auth_from_url(request.url or "")
    return HTTPBasicAuth(user, password)(request) if user or password else request
