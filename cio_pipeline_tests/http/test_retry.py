"""Requests end in time and in words: whatever answers, or does not, and without a key, a URL or netrc's credentials."""

from __future__ import annotations

import gzip
import io
import socket
import ssl
import time
import zlib
from datetime import datetime
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from requests.auth import HTTPBasicAuth

from cio_pipeline.http import body as http_body
from cio_pipeline.http import retry as http
from cio_pipeline.http.errors import Problem, problem_of
from cio_pipeline_tests import raw_server

SECRET = "s3cret"


def ask(
    url: str, session: requests.Session | http.PreparedSession | None = None, tries: int = 2, **how: Any
) -> requests.Response:
    retry = http.RetryPolicy(tries, {503}, problem_in=how.pop("problem_in", lambda _: None), pause=lambda *_: None)
    limits = http.Limits(timeout=(5, 5), **{name: how.pop(name) for name in ("seconds", "max_bytes") if name in how})
    how = {"data": None, **how}
    return http.send(
        session or http.new_session(), how.pop("method", "GET"), url, service="Customer.io", retry=retry, limits=limits, **how
    )


def prepared(url: str) -> http.PreparedSession:
    return http.PreparedSession(http.new_session(url=url))


def any_session(url: str) -> requests.Session:
    return http.new_session()


SESSIONS = pytest.mark.parametrize("session_for", [any_session, prepared])


def said_of(url: str, **how: Any) -> str:
    """The sentence, after a look at all that led to the error."""
    with pytest.raises(http.Unavailable) as failed:
        ask(url, **how)
    assert SECRET not in everything_of(failed.value)
    return str(failed.value)


def everything_of(error: BaseException | None) -> str:
    return "" if error is None else f"{error!r}{everything_of(error.__cause__)}{everything_of(error.__context__)}"


def drip(before: bytes, drop: bytes) -> raw_server.Answer:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(before)
        while True:
            connection.sendall(drop)
            time.sleep(0.05)

    return answer


@pytest.mark.parametrize(
    "answer",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        drip(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        drip(b"HTTP/1.1 200 OK\r\nX: ", b"y"),
        drip(b"", b"H"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
)
def test_an_answer_a_byte_at_a_time_ends_in_time(answer: raw_server.Answer) -> None:
    with raw_server.serve(answer) as url:
        started = time.monotonic()
        assert "Customer.io (127.0.0.1) could not be reached in 2 tries" in said_of(url, seconds=0.3)
        assert time.monotonic() - started < 5


def endless(head: bytes, block: bytes) -> raw_server.Answer:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(block)

    return answer


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n",
    ],
)
def test_an_answer_without_an_end_is_left_at_its_limit(head: bytes) -> None:
    with (
        raw_server.serve(endless(head, b"x" * 65536)) as url,
        pytest.raises(http.AnswerTooLong, match="is over 1,000,000 bytes"),
    ):
        ask(url, max_bytes=1_000_000)


def test_an_answer_that_unpacks_to_very_much_is_left_at_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    unpacked = http_body.unpacked

    def noted(*of: Any) -> Any:
        for block in unpacked(*of):
            given.append(len(block))
            yield block

    monkeypatch.setattr(http_body, "unpacked", noted)
    bomb = gzip.compress(bytes(200_000_000), 9)
    answer = raw_server.http(bomb, "200 OK", "Content-Encoding: gzip")
    with raw_server.serve(lambda connection, _: connection.sendall(answer)) as url, pytest.raises(http.AnswerTooLong):
        ask(url, max_bytes=1_000_000)
    assert sum(given) < 1_200_000


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, lambda text: gzip.compress(text[:9]) + gzip.compress(text[9:])])
def test_a_packed_answer_is_unpacked(pack: Any) -> None:
    text = b"some text, and more of it" * 10_000
    name = "deflate" if pack is zlib.compress else "gzip"
    answer = raw_server.http(pack(text), "200 OK", f"Content-Encoding: {name}")
    with raw_server.serve(lambda connection, _: connection.sendall(answer)) as url:
        assert ask(url).content == text
        file = io.BytesIO(b"what was there before" * 100_000)
        assert ask(url, into=file).content == b""
        assert file.getvalue() == text


@pytest.mark.parametrize(
    ("body", "header"),
    [
        (gzip.compress(b"x" * 100, mtime=0)[:-9], "Content-Encoding: gzip"),
        (b"no gzip", "Content-Encoding: gzip"),
        (b"{}", "Content-Encoding: br"),
        (b"{}", "Content-Encoding: gzip, gzip"),
        (b"{}", "Content-Length: 20"),
    ],
)
def test_an_answer_that_is_not_whole_is_asked_for_again(body: bytes, header: str) -> None:
    answers = [raw_server.http(body, "200 OK", header).replace(b"Content-Length: 2\r\n", b"", 1), raw_server.http(b"whole")]
    with raw_server.serve(lambda connection, _: connection.sendall(answers.pop(0))) as url:
        assert ask(url).content == b"whole"


def test_a_problem_in_an_answer_is_tried_again_and_then_said() -> None:
    server = raw_server.serve(lambda connection, _: connection.sendall(raw_server.http()))
    with server as url, pytest.raises(http.UnusableAnswer) as failed:
        ask(url, problem_in=lambda response: Problem(f"it answered {response.text}"))
    assert str(failed.value) == "Customer.io (127.0.0.1) gave no usable answer in 2 tries: it answered {}."


HOUR = http.LONGEST_RETRY_AFTER_SECONDS
SKEWED = "Thu, 01 Jan 2015 00:00:00 GMT"


@pytest.mark.parametrize(
    ("given", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("1.5", 1.5),
        ("0", 0.0),
        ("9" * 400, HOUR),
        ("3601", HOUR),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1e3", None),
        ("\u0667", None),
        ("soon", None),
        ("", None),
        ("Thu, 01 Jan 2015 00:00:46 GMT", 46.0),
        ("Thu, 01 Jan 2015 00:00:46 -0000", 46.0),
        ("Wed, 31 Dec 2014 23:00:00 GMT", 0.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", HOUR),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Fri, 99 Dec 2026 99:59:59 GMT", None),
    ],
)
def test_the_wait_that_is_asked_for_is_read_by_the_answers_own_clock_and_bounded(given: str, seconds: float | None) -> None:
    assert http._retry_after({"Retry-After": given, "Date": SKEWED}) == seconds


def test_without_a_date_the_wait_is_by_our_clock() -> None:
    for date in ({}, {"Date": "yesterday"}):
        asked = http._retry_after({"Retry-After": formatdate(time.time() + 100, usegmt=True), **date})
        assert asked is not None
        assert 98 <= asked <= 100


@SESSIONS
def test_a_host_that_no_name_server_knows_is_said_after_three_tries(session_for: Any) -> None:
    url = f"https://{SECRET}@nowhere.invalid/?token={SECRET}"
    said = said_of(url, session=session_for(url), tries=9)
    assert said == (
        "Customer.io (nowhere.invalid) could not be reached in 3 tries:"
        " no name server knows that host: is CUSTOMERIO_TRACKING_ENDPOINT right?"
    )


@SESSIONS
def test_a_refused_connection_is_said_in_words(session_for: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{SECRET}"
        assert "in 5 tries: it refused the connection: is CUSTOMERIO_TRACKING_ENDPOINT right" in said_of(
            url, session=session_for(url), tries=9
        )


def certificate(folder: Path, host: str, until: datetime) -> ssl.SSLContext:
    """A server's side of TLS with a certificate that nobody has signed, in `ca.pem`."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), datetime(2020, 1, 1), until)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, SHA256())
    )
    (folder / "ca.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (folder / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "ca.pem", folder / "key.pem")
    return context


@SESSIONS
@pytest.mark.parametrize(
    ("is_trusted", "host", "until", "said"),
    [
        (False, "localhost", datetime(2100, 1, 1), "is from an issuer that is not trusted here"),
        (True, "elsewhere.example.com", datetime(2100, 1, 1), "is for another host"),
        (True, "localhost", datetime(2021, 1, 1), "has expired"),
        (True, "localhost", datetime(2100, 1, 1), None),
    ],
)
def test_a_certificate_is_said_at_once_and_an_own_ca_is_trusted(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    session_for: Any,
    is_trusted: bool,
    host: str,
    until: datetime,
    said: str | None,
) -> None:
    context = certificate(tmp_path, host, until)
    if is_trusted:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "ca.pem"))
    with raw_server.serve(lambda connection, _: connection.sendall(raw_server.http()), context) as url:
        url = url.replace("http://127.0.0.1", "https://localhost")
        if said is None:
            assert ask(url, session_for(url)).content == b"{}"
        else:
            sentence = said_of(url, session=session_for(url), tries=9)
            assert f"in 1 try: its certificate {said}: is CUSTOMERIO_TRACKING_ENDPOINT right?" in sentence


@SESSIONS
def test_a_ca_bundle_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_for: Any) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    with raw_server.serve(lambda connection, _: None) as url:
        for name in ("nowhere.pem", "empty.pem"):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / name))
            secure = url.replace("http:", "https:")
            said = said_of(secure, session=session_for(secure), tries=9)
            assert "in 1 try: REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE does not name a readable file" in said


@SESSIONS
def test_the_environments_proxy_is_used_and_its_refusal_is_said(monkeypatch: pytest.MonkeyPatch, session_for: Any) -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        connection.sendall(raw_server.http(b"", "407 Proxy Authentication Required"))

    with raw_server.serve(answer) as url:
        monkeypatch.setenv("HTTPS_PROXY", url.replace("//", f"//user:{SECRET}@"))
        track = "https://track.customer.io"
        assert "in 3 tries: the proxy in HTTPS_PROXY" in said_of(track, session=session_for(track), tries=9)
    assert asked[0].startswith(b"CONNECT track.customer.io:443")


@pytest.mark.parametrize("is_by_a_proxy", [False, True])
def test_a_prepared_session_sends_what_a_session_sends_but_without_cookies(
    monkeypatch: pytest.MonkeyPatch, is_by_a_proxy: bool
) -> None:
    asked: list[list[bytes]] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        head, _, body = request.partition(b"\r\n\r\n")
        first, *headers = head.splitlines()
        asked.append([first, *sorted(headers), body])
        connection.sendall(raw_server.http(b"{}", "207 Multi-Status", "X-Kind: odd", "Set-Cookie: a=b"))

    with raw_server.serve(answer) as url:
        if is_by_a_proxy:
            monkeypatch.setenv("HTTP_PROXY", url.replace("//", f"//user:{SECRET}@"))
            monkeypatch.setenv("NO_PROXY", "")
            url = "http://track.customer.io"
        auth = HTTPBasicAuth("site", "key")
        prepared_session = http.PreparedSession(http.new_session(auth, url))
        for method, path, body in (("POST", "/batch", b"{}"), ("GET", "/region", None), ("POST", "/a%7Eb/Z%C3%BC/", b"")):
            given: dict[str, Any] = {"method": method, "data": body, "headers": {"Content-Type": "application/json"}}
            answers = [
                ask(url + path, one, **given) for one in (http.new_session(auth, url), prepared_session, prepared_session)
            ]
            assert {(one.status_code, one.headers["x-kind"], one.content) for one in answers} == {(207, "odd", b"{}")}
            assert asked[0] == asked[1] == asked[2]
            asked.clear()


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\u201d", f"a\r\nb: {SECRET}"])
def test_a_key_that_no_header_can_hold_is_never_quoted(key: str) -> None:
    with raw_server.serve(lambda connection, _: connection.sendall(raw_server.http())) as url:
        assert "in 1 try: the request could not be made" in said_of(url, session=http.new_session(http.Bearer(key)))


@pytest.mark.parametrize(
    "url", ["https://[::1", "http://", f"http://a..b/{SECRET}", f"ftp://host/{SECRET}", f"https://{'a' * 70}.b/{SECRET}"]
)
def test_a_url_that_is_none_is_never_quoted(url: str) -> None:
    assert "Customer.io" in said_of(url)


def test_netrc_takes_over_no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        lines = request.decode().splitlines()
        asked.append(next((line.partition(": ")[2] for line in lines if line.lower().startswith("authorization:")), ""))
        connection.sendall(raw_server.http())

    (tmp_path / "netrc").write_text("default login thief password thief\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with raw_server.serve(answer) as url:
        requests.get(url, timeout=5)
        ask(url)
        ask(url, http.new_session(http.Bearer("token")))
        ask(url, http.new_session(HTTPBasicAuth("site", "key")))
        ask(url.replace("//", "//me:p%40ss@"))
    thief, nobody, token, basic, own = asked
    assert thief.startswith("Basic dGhpZWY6")
    assert (nobody, token) == ("", "Bearer token")
    assert basic == "Basic c2l0ZTprZXk="
    assert own == "Basic bWU6cEBzcw=="


def test_what_is_not_known_is_said_by_its_kind_alone() -> None:
    assert problem_of(ValueError(SECRET), "PostHog") == Problem("the request could not be made (ValueError)", 1)
