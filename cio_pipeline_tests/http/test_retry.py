"""Whatever a server answers, a request ends in time, and its error is a sentence without keys, URLs or credentials."""

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
from cio_pipeline.http.attempt import Limits
from cio_pipeline.http.errors import Problem, problem_of
from cio_pipeline.http.session import Bearer, PreparedSession, new_session
from cio_pipeline_tests import raw_server

SECRET = "s3cret"


def ask(url: str, session: requests.Session | PreparedSession | None = None, tries: int = 2, **how: Any) -> requests.Response:
    retry = http.RetryPolicy(tries, {503}, problem_in=how.pop("problem_in", lambda _: None), pause=lambda *_: None)
    limits = Limits(timeout=(5, 5), **{name: how.pop(name) for name in ("seconds", "max_bytes") if name in how})
    how = {"data": None, **how}
    return http.send(
        session or new_session(), how.pop("method", "GET"), url, service="Customer.io", retry=retry, limits=limits, **how
    )


def prepared(url: str) -> PreparedSession:
    return PreparedSession(new_session(url=url))


def any_session(url: str) -> requests.Session:
    return new_session()


SESSIONS = pytest.mark.parametrize("session_for", [any_session, prepared])


def error_of(url: str, **how: Any) -> str:
    """The error's message. Neither it nor its causes may contain the secret."""
    with pytest.raises(http.Unavailable) as failed:
        ask(url, **how)
    assert SECRET not in with_causes(failed.value)
    return str(failed.value)


def with_causes(error: BaseException | None) -> str:
    return "" if error is None else f"{error!r}{with_causes(error.__cause__)}{with_causes(error.__context__)}"


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
def test_an_answer_that_comes_byte_by_byte_is_given_up_in_time(answer: raw_server.Answer) -> None:
    with raw_server.serve(answer) as url:
        started = time.monotonic()
        assert "Customer.io (127.0.0.1) could not be reached in 2 tries" in error_of(url, seconds=0.3)
        assert time.monotonic() - started < 30


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
def test_an_endless_answer_is_given_up_at_the_limit(head: bytes) -> None:
    with (
        raw_server.serve(endless(head, b"x" * 65536)) as url,
        pytest.raises(http.AnswerTooLong, match="is over 1,000,000 bytes"),
    ):
        ask(url, max_bytes=1_000_000)


def test_a_decompression_bomb_is_given_up_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    decompressed = http_body.decompressed

    def noted(*of: Any) -> Any:
        for block in decompressed(*of):
            given.append(len(block))
            yield block

    monkeypatch.setattr(http_body, "decompressed", noted)
    bomb = gzip.compress(bytes(200_000_000), 9)
    answer = raw_server.http(bomb, "200 OK", "Content-Encoding: gzip")
    with raw_server.serve(lambda connection, _: connection.sendall(answer)) as url, pytest.raises(http.AnswerTooLong):
        ask(url, max_bytes=1_000_000)
    assert sum(given) < 1_200_000


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, lambda text: gzip.compress(text[:9]) + gzip.compress(text[9:])])
def test_a_compressed_answer_is_decompressed(pack: Any) -> None:
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
def test_an_incomplete_answer_is_requested_again(body: bytes, header: str) -> None:
    answers = [raw_server.http(body, "200 OK", header).replace(b"Content-Length: 2\r\n", b"", 1), raw_server.http(b"whole")]
    with raw_server.serve(lambda connection, _: connection.sendall(answers.pop(0))) as url:
        assert ask(url).content == b"whole"


def test_an_answer_with_a_problem_is_retried_and_then_reported() -> None:
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
def test_retry_after_is_relative_to_the_answers_own_clock_and_bounded(given: str, seconds: float | None) -> None:
    assert http._retry_after({"Retry-After": given, "Date": SKEWED}) == seconds


def test_without_a_date_header_retry_after_is_relative_to_our_clock() -> None:
    for date in ({}, {"Date": "yesterday"}):
        asked = http._retry_after({"Retry-After": formatdate(time.time() + 100, usegmt=True), **date})
        assert asked is not None
        assert 98 <= asked <= 100


@SESSIONS
def test_an_unknown_host_is_reported_after_three_tries(session_for: Any) -> None:
    url = f"https://{SECRET}@nowhere.invalid/?token={SECRET}"
    said = error_of(url, session=session_for(url), tries=9)
    assert said == (
        "Customer.io (nowhere.invalid) could not be reached in 3 tries:"
        " no name server knows that host: is CUSTOMERIO_TRACKING_ENDPOINT right?"
    )


@SESSIONS
def test_a_refused_connection_is_explained(session_for: Any) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/{SECRET}"
        assert "in 5 tries: it refused the connection: is CUSTOMERIO_TRACKING_ENDPOINT right" in error_of(
            url, session=session_for(url), tries=9
        )


def certificate(folder: Path, host: str, until: datetime) -> ssl.SSLContext:
    """A TLS server context with a self-signed certificate, which is in `ca.pem`."""
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
def test_a_bad_certificate_is_reported_at_once_and_a_private_ca_is_trusted(
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
            sentence = error_of(url, session=session_for(url), tries=9)
            assert f"in 1 try: its certificate {said}: is CUSTOMERIO_TRACKING_ENDPOINT right?" in sentence


@SESSIONS
def test_a_missing_ca_bundle_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, session_for: Any) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    with raw_server.serve(lambda connection, _: None) as url:
        for name in ("nowhere.pem", "empty.pem"):
            monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / name))
            secure = url.replace("http:", "https:")
            said = error_of(secure, session=session_for(secure), tries=9)
            assert "in 1 try: REQUESTS_CA_BUNDLE or CURL_CA_BUNDLE does not name a readable file" in said


@SESSIONS
def test_the_environments_proxy_is_used_and_its_refusal_is_reported(monkeypatch: pytest.MonkeyPatch, session_for: Any) -> None:
    asked: list[bytes] = []

    def answer(connection: socket.socket, request: bytes) -> None:
        asked.append(request)
        connection.sendall(raw_server.http(b"", "407 Proxy Authentication Required"))

    with raw_server.serve(answer) as url:
        monkeypatch.setenv("HTTPS_PROXY", url.replace("//", f"//user:{SECRET}@"))
        track = "https://track.customer.io"
        assert "in 3 tries: the proxy in HTTPS_PROXY" in error_of(track, session=session_for(track), tries=9)
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
        prepared_session = PreparedSession(new_session(auth, url))
        for method, path, body in (("POST", "/batch", b"{}"), ("GET", "/region", None), ("POST", "/a%7Eb/Z%C3%BC/", b"")):
            given: dict[str, Any] = {"method": method, "data": body, "headers": {"Content-Type": "application/json"}}
            answers = [ask(url + path, one, **given) for one in (new_session(auth, url), prepared_session, prepared_session)]
            assert {(one.status_code, one.headers["x-kind"], one.content) for one in answers} == {(207, "odd", b"{}")}
            assert asked[0] == asked[1] == asked[2]
            asked.clear()


@pytest.mark.parametrize("key", [f"{SECRET}\n", f"{SECRET}\u201d", f"a\r\nb: {SECRET}"])
def test_a_key_that_is_invalid_in_a_header_is_never_quoted(key: str) -> None:
    with raw_server.serve(lambda connection, _: connection.sendall(raw_server.http())) as url:
        assert "in 1 try: the request could not be made" in error_of(url, session=new_session(Bearer(key)))


@pytest.mark.parametrize(
    "url", ["https://[::1", "http://", f"http://a..b/{SECRET}", f"ftp://host/{SECRET}", f"https://{'a' * 70}.b/{SECRET}"]
)
def test_an_invalid_url_is_never_quoted(url: str) -> None:
    assert "Customer.io" in error_of(url)


def test_credentials_never_come_from_netrc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
        ask(url, new_session(Bearer("token")))
        ask(url, new_session(HTTPBasicAuth("site", "key")))
        ask(url.replace("//", "//me:p%40ss@"))
    thief, nobody, token, basic, own = asked
    assert thief.startswith("Basic dGhpZWY6")
    assert (nobody, token) == ("", "Bearer token")
    assert basic == "Basic c2l0ZTprZXk="
    assert own == "Basic bWU6cEBzcw=="


def test_an_unknown_exception_is_reported_only_by_its_class() -> None:
    assert problem_of(ValueError(SECRET), "PostHog") == Problem("the request could not be made (ValueError)", 1)
