"""CIO_SUPPRESSED_FILE: read as it was meant, or refused; never taken for a list of nobody."""

from __future__ import annotations

import gzip
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import md5, sha1, sha256, sha512
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from zipfile import ZipFile

import pytest

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.suppression_list import Unusable, parse, read_suppressed

JANE, JOE = "Jane@example.com", "joe@example.com"
BOTH = f"{JANE}\n{JOE}\n"
HASH = sha256(JANE.lower().encode()).hexdigest()
SECRET = "secret-word"


@pytest.mark.parametrize(
    "text",
    [
        BOTH,
        BOTH.upper(),
        BOTH.replace("\n", "\r\n"),
        BOTH.replace("\n", "\r"),
        f"# people who left\n\n  {JANE}  \n   {JOE}",
        f"email\n{BOTH}",
        f'"E-Mail Address"\n{BOTH}',
        f'"{JANE}"\n"{JOE}"\n',
        f'"{JANE}","left, 2024"\n"{JOE}",""\n',
        f"distinct_id,reason\n{JANE},left\n{JOE},\n",
        f"{JANE};left\n{JOE};left\n",
        f"{JANE}\tleft\n{JOE}\tleft\n",
        f"{JANE},\n{JOE},\n",
        f"{JANE},email\n{JOE},email\n",
        f"name,email\nJane,{JANE}\nJoe,{JOE}\n",
        f"Contact;Mail;Reason\nJane;{JANE};left\nJoe;{JOE};left\n",
        f"Jane <{JANE}>\n<{JOE}>\n",
        f"mailto:{JANE}\nMAILTO:{JOE}?subject=x\n",
        f"{JANE.replace('@', '%40')}\n{JOE.replace('@', '%40')}\n",
        f"- {JANE}\n- {JOE}\n",
        f"'{JANE}'\n\u201c{JOE}\u201d\n",
        f"{JANE} # left in 2024\n{JOE} | left\n",
        f"{JANE} {JOE}\n",
        f"\u200b{JANE}\n{JOE}\u200b\n",
        f'["{JANE}", "{JOE}"]',
        f'\n[\n  "{JANE}",\n  "{JOE}"\n]\n',
        f"sha256:{HASH}\nSHA-256={sha256(JOE.encode()).hexdigest().upper()}\n",
        f"{HASH}  -\n\\x{sha256(JOE.encode()).hexdigest()}\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_is_read_as_it_was_meant(text: str, encoding: str) -> None:
    listed = parse(text.encode(encoding))
    assert listed.has(JANE.lower())
    assert listed.has(JOE.upper() if "sha" not in text.lower() and "\\x" not in text else JOE)
    assert not listed.has("jim@example.com")
    assert 1 <= listed.people_listed <= 3


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("u1\nu2\n", 2),
        ("id\nu1\n", 1),
        ("u1;x\nu2;y\n", 2),
        ('"a,b"\nc\n', 2),
        ("auth0|abc\n", 1),
        ("u 1\n", 1),
        (",\nu1,x\n", 1),
    ],
)
def test_the_names_are_counted_and_ids_are_exact(text: str, names: int) -> None:
    listed = parse(text.encode())
    assert listed.people_listed == names
    assert not listed.has("U1")
    whole = text.splitlines()[-1]
    assert listed.has(whole), "an id may hold a comma"


def test_a_quoted_id_with_a_comma_is_one_name() -> None:
    listed = parse(b'"a,b"\nc\n')
    assert (listed.has("a,b"), listed.has("c"), listed.has("a")) == (True, True, False)


def test_an_empty_list_must_say_that_it_is_meant() -> None:
    assert not parse(b"# empty on purpose\n")
    assert parse(b"\n# Empty on purpose: nobody has asked yet\nemail\n").people_listed == 0
    assert parse(b"# empty on purpose\nu1\n").has("u1"), "names count all the same"


@pytest.mark.parametrize(
    "text",
    [
        "u1 u2\n",
        "u1,u2\n",
        "u1;u2\n",
        "'u1','u2'\n",
        "1. u1\n2. u2\n",
        "id=u1\nid=u2\n",
        "user: u1\nuser: u2\n",
        "| u1 | left |\n| u2 | left |\n",
        "1|u1\n2|u2\n",
        "u1\u2028u2\n",
        "u1\x85u2\n",
        "u1 # asked in 2024\nu2 # asked too\n",
        "date,account_id\n2024,u1\n2024,u2\n",
        "date,PostHog Distinct ID\n2024,u1\n2024,u2\n",
        "Seit;Kunden-ID\n2024;u1\n2024;u2\n",
        "name,contactId\nJane van der Berg,u1\nJoe,u2\n",
    ],
)
def test_ids_are_found_where_a_line_may_mean_them(text: str) -> None:
    listed = parse(text.encode())
    assert listed.has("u1")
    assert listed.has("u2")


@pytest.mark.parametrize(
    "text", ["david\n", "user_1\n", "head-of-users\n", "Head <head@school.org>\n", "gid://shop/Customer/1\n", "jane doe\n"]
)
def test_plain_lists_of_one_are_taken(text: str) -> None:
    assert parse(text.encode()).people_listed == 1


ZIP = b64decode("UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA==")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "names nobody; if that is intended, its first line must be `# empty on purpose`"),
        (b"\n \n# nobody yet\n", "names nobody"),
        (b"email,reason\n", "names nobody"),
        (b"[]", "names nobody"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page or XML, not a list"),
        (b"Sign in\n<script>x</script>\n", "is a web page or XML"),
        (b'<?xml version="1.0"?><people/>', "is a web page or XML"),
        (b'{"error": "unauthorized"}', "looks like JSON, but is not an array of texts"),
        (b'[{"email": "jane@example.com"}]', "looks like JSON"),
        (b'["jane@example.com"', "looks like JSON"),
        (b"[1, 2]", "looks like JSON"),
        (gzip.compress(b"u1\n", mtime=0), "is not text"),
        (ZIP, "is not text"),
        (b"u1\0u2\n", "is not text"),
        ("jane@example.com".encode("utf-16-le"), "is not text"),
        ("jané@example.com".encode("latin-1"), "is not text in UTF-8"),
        (b"u1,left\nu2\n", "has 1 columns in line 2, but 2 in its first line"),
        (b"# a comment\nu1\n\nu2;left\n", "has 2 columns in line 4, but 1 in its first line"),
        (b'"u1\nu2"\n', "has a quote in line 1 that is not closed"),
        (b'u"1\n', "has a quote in line 1"),
        (b"email,reason\n,left\n", "names nobody in line 2"),
        (b"null", "names nobody in line 1: it must be one person's id or email, with any remark behind a `#`"),
        (b"u1\nNULL\n", "names nobody in line 2"),
        (b"id\n\\N\n", "names nobody in line 2"),
        (b"Forbidden", "names nobody in line 1"),
        (b"404 Not Found\n", "names nobody in line 1"),
        (b"Access denied.\n", "names nobody in line 1"),
        (b"Please sign in to go on", "names nobody in line 1"),
        (b"-----BEGIN PGP MESSAGE-----\n\nx\n", "names nobody in line 1"),
        (b"full name;number\nJane van der Berg;u1\n", "names nobody in line 2"),
        (b"a" * 151, "names nobody in line 1"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"4d" * 32 + b"\nsize 9\n",
            "has a web address in line 1",
        ),
        (b"u1\nhttps://us.posthog.com/person/u2\n", "has a web address in line 2"),
        (b"u1\n*@example.com\n", "has a pattern in line 2: it must name each person"),
        (b"@example.com\n", "has a pattern in line 1"),
        (f"u1\n{md5(b'x').hexdigest()}\n".encode(), "has what looks like a hash other than SHA-256 in line 2"),
        (f"sha1:{sha1(b'x').hexdigest()}\n".encode(), "has what looks like a hash other than SHA-256 in line 1"),
        (sha512(b"x").hexdigest().encode(), "has what looks like a hash"),
        (b"sha512: abc\n", "has what looks like a hash"),
        (b"LXEWQrcmsEQBYnypNZoaNbjDHCf0fcIqmxGxeuIT5yU=", "has what looks like a hash"),
        (b"$2b$12$abcdefghijklmnopqrstuv\n", "has what looks like a hash"),
    ],
)
def test_what_is_no_list_of_people_is_refused(content: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(Unusable) as unusable:
        parse(content)
    assert str(unusable.value).startswith(why)
    assert "jan" not in str(unusable.value)
    (tmp_path / SECRET).write_bytes(content)
    with pytest.raises(NotDelivered, match=r"^CIO_SUPPRESSED_FILE .*: nothing is sent\.$"):
        read_suppressed(str(tmp_path / SECRET))


def test_a_spreadsheet_is_refused(tmp_path: Path) -> None:
    with ZipFile(tmp_path / "list.xlsx", "w") as file:
        file.writestr("xl/sharedStrings.xml", JANE)
    with pytest.raises(NotDelivered, match="is not text"):
        read_suppressed(str(tmp_path / "list.xlsx"))


def test_the_list_is_read_from_a_path_or_file_url(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(BOTH)
    assert read_suppressed(str(tmp_path / "list.txt")).has(JANE)
    assert read_suppressed((tmp_path / "list.txt").as_uri()).has(JOE)
    assert not read_suppressed(None)


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[str | None]]]:
    """A host that gives one answer; its URL without the scheme, and the logins it was shown."""
    logins: list[str | None] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(self.headers["Authorization"])
            status, headers, body = answer
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}/list", logins
        server.shutdown()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((302, {"Location": f"/login?{SECRET}"}, b""), "was answered by a redirect, which is not followed"),
        ((307, {"Location": "https://other.example.com/"}, BOTH.encode()), "was answered by a redirect"),
        ((401, {}, BOTH.encode()), "was answered by status 401"),
        ((204, {}, b""), "was answered by status 204"),
        ((206, {}, BOTH.encode()), "was answered by status 206"),
        ((200, {"Content-Type": "text/html; charset=utf-8"}, b"Please sign in"), "is a web page"),
        ((200, {}, b""), "names nobody"),
    ],
)
def test_only_a_whole_list_is_taken_from_a_url(answer: Answer, why: str) -> None:
    with (
        serving(answer) as (url, _),
        pytest.raises(NotDelivered, match=f"^CIO_SUPPRESSED_FILE {why}.*: nothing is sent.$") as failure,
    ):
        read_suppressed(f"http://user:{SECRET}@{url}")
    assert (failure.value.__cause__, failure.value.__context__) == (None, None)
    assert SECRET not in str(failure.value)


@pytest.mark.parametrize(
    "answer",
    [(503, {"Retry-After": "9"}, b""), (500, {}, BOTH.encode()), (200, {"Content-Length": "900"}, BOTH.encode())],
)
def test_what_may_pass_is_tried_again_and_then_said(answer: Answer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.suppression_list.LONGEST_WAIT_SECONDS", 0)
    with (
        serving(answer) as (url, logins),
        pytest.raises(
            NotDelivered, match=r"^CIO_SUPPRESSED_FILE \(127\.0\.0\.1\) .* in 3 tries: .+ Nothing is sent\.$"
        ) as failure,
    ):
        read_suppressed(f"http://user:{SECRET}@{url}")
    assert len(logins) == 3
    assert (failure.value.__cause__, failure.value.__context__) == (None, None)
    assert SECRET not in str(failure.value)


def test_a_urls_own_login_is_shown_and_never_one_of_a_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("default login other password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving((200, {}, BOTH.encode())) as (url, logins):
        assert read_suppressed(f"http://user:pass%40word@{url}").people_listed == 2
        assert read_suppressed(f"HTTP://{url}").people_listed == 2
    assert logins == ["Basic dXNlcjpwYXNzQHdvcmQ=", None]


def test_a_list_that_is_too_large_or_takes_too_long_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "list").write_text(BOTH)
    monkeypatch.setattr("cio_pipeline.customerio.suppression_list.MAX_BYTES", 10)
    with serving((200, {}, BOTH.encode())) as (url, _):
        for place in (str(tmp_path / "list"), f"http://{url}"):
            with pytest.raises(NotDelivered, match="is over 10 bytes"):
                read_suppressed(place)
        monkeypatch.setattr("cio_pipeline.customerio.suppression_list.MAX_BYTES", 1000)
        monkeypatch.setattr("cio_pipeline.customerio.suppression_list.MAX_SECONDS", 0)
        monkeypatch.setattr("cio_pipeline.customerio.suppression_list.LONGEST_WAIT_SECONDS", 0)
        with pytest.raises(NotDelivered, match=r"did not come to an end .*\. Nothing is sent\."):
            read_suppressed(f"http://{url}")


def test_a_url_behind_another_scheme_is_refused_for_that_would_follow_redirects() -> None:
    with pytest.raises(NotDelivered, match="must be a path, or a URL that begins with its own scheme"):
        read_suppressed("simplecache::https://example.com/x")


def test_a_host_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.suppression_list.LONGEST_WAIT_SECONDS", 0)
    with pytest.raises(
        NotDelivered, match=r"^CIO_SUPPRESSED_FILE \(127\.0\.0\.1\) could not be reached .*refused.* Nothing is sent\.$"
    ):
        read_suppressed("http://127.0.0.1:1/secret-word")


@pytest.mark.parametrize("wrong", ["/nowhere/secret-word", "nowhere://secret-word", "/"])
def test_what_cannot_be_read_is_refused_without_its_place(wrong: str) -> None:
    with pytest.raises(NotDelivered, match=r"^CIO_SUPPRESSED_FILE cannot be read \(\w+\): nothing is sent\.$") as failure:
        read_suppressed(wrong)
    assert (failure.value.__cause__, failure.value.__context__) == (None, None)
