"""The Customer.io sandbox over HTTP, with faults, its pages, and its command."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import orjson
import pytest
import requests

from cio_pipeline.sandbox.customerio.server import CustomerioServer, Fault, Request, serve

KEYS = ("sandbox", "sandbox-key")
EVENT = {"type": "person", "action": "event", "identifiers": {"id": "u1"}, "name": "signed up"}


@pytest.fixture
def sandbox() -> Iterator[CustomerioServer]:
    with serve() as server:
        yield server


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        session.auth = KEYS
        yield session


def post(session: requests.Session, server: CustomerioServer, *items: Any, timeout: float = 5) -> requests.Response:
    return session.post(f"{server.url}/api/v2/batch", json={"batch": items}, timeout=timeout)


def identify(identifier: str, **attributes: Any) -> dict[str, Any]:
    return {"type": "person", "action": "identify", "identifiers": {"id": identifier}, "attributes": attributes}


@pytest.mark.parametrize("auth", [None, ("sandbox", "wrong"), ("wrong", "sandbox-key")])
def test_wrong_credentials_are_refused_with_401(sandbox: CustomerioServer, auth: tuple[str, str] | None) -> None:
    answer = requests.post(f"{sandbox.url}/api/v2/batch", json={"batch": [EVENT]}, auth=auth, timeout=5)
    assert (answer.status_code, answer.json()) == (401, {"meta": {"error": "Unauthorized request"}})
    assert sandbox.workspace.people() == []


def test_the_region_call_answers_with_the_sandbox_itself(sandbox: CustomerioServer, session: requests.Session) -> None:
    answer = session.get(f"{sandbox.url}/api/v1/accounts/region", timeout=5)
    assert answer.json() == {"url": sandbox.url, "region": "us", "environment_id": 1}


def test_a_batch_arrives_and_is_counted(sandbox: CustomerioServer, session: requests.Session) -> None:
    first = post(session, sandbox, EVENT)
    second = post(session, sandbox, EVENT, {})
    assert (first.status_code, first.json(), second.status_code) == (200, {}, 207)
    assert [error["batch_index"] for error in second.json()["errors"]] == [1]
    assert sandbox.requests[0] == Request("POST", "/api/v2/batch", 200, int(first.request.headers["Content-Length"]))
    counts = requests.get(f"{sandbox.url}/sandbox/requests", timeout=5).json()
    assert counts == {"requests": 2, "by_path": {"/api/v2/batch": 2}, "by_status": {"200": 1, "207": 1}}


def test_v1_calls_decode_the_identifier_in_the_path(sandbox: CustomerioServer, session: requests.Session) -> None:
    customers = f"{sandbox.url}/api/v1/customers"
    assert session.post(f"{customers}/a%2Fb%20c/events", json={"name": "e"}, timeout=5).status_code == 200
    assert session.post(f"{customers}/ada%40example.com/events", json={"name": "e"}, timeout=5).status_code == 200
    refused = session.post(f"{customers}/u1/events", json={"name": " "}, timeout=5)
    assert (refused.status_code, refused.json()) == (400, {"meta": {"error": "event name must not be blank"}})
    people = requests.get(f"{sandbox.url}/sandbox/people", timeout=5).json()
    assert [person["identifiers"].get("email") for person in people] == ["ada@example.com", None]
    assert people[1]["identifiers"]["id"] == "a/b c"
    by_path = requests.get(f"{sandbox.url}/sandbox/requests", timeout=5).json()["by_path"]
    assert by_path == {"/api/v1/customers/{identifier}/events": 3}


def test_what_the_sandbox_does_not_have_is_404(sandbox: CustomerioServer, session: requests.Session) -> None:
    assert session.delete(f"{sandbox.url}/api/v1/customers/u1", timeout=5).status_code == 404
    assert session.get(f"{sandbox.url}/api/v2/batch", timeout=5).status_code == 404
    assert session.get(f"{sandbox.url}/nothing", timeout=5).status_code == 404
    assert session.post(f"{sandbox.url}/", timeout=5).status_code == 404


def test_a_connection_is_kept_alive_through_refusals(sandbox: CustomerioServer) -> None:
    head = b"POST /api/v2/batch HTTP/1.1\r\nHost: sandbox\r\nContent-Length: 2\r\n\r\n{}"
    with socket.create_connection(("127.0.0.1", sandbox.server_address[1]), timeout=5) as connection:
        for _ in range(3):
            connection.sendall(head)
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_a_large_batch_takes_well_under_100_ms(sandbox: CustomerioServer, session: requests.Session) -> None:
    def body(batch: int) -> bytes:
        ids = [f"{batch:013d}{n:013d}" for n in range(900)]
        return orjson.dumps({"batch": [{**EVENT, "id": ulid, "attributes": {"text": "x" * 380}} for ulid in ids]})

    seconds = []
    for batch in range(5):
        content = body(batch)
        assert 450_000 < len(content) < 500_000
        start = time.perf_counter()
        assert session.post(f"{sandbox.url}/api/v2/batch", data=content, timeout=5).status_code == 200
        seconds.append(time.perf_counter() - start)
    assert sandbox.workspace.totals()["events"] == 4500
    assert min(seconds) < 0.1


def test_concurrent_requests_lose_nothing(sandbox: CustomerioServer) -> None:
    def lane(number: int) -> None:
        with requests.Session() as session:
            session.auth = KEYS
            for n in range(20):
                post(session, sandbox, {**EVENT, "identifiers": {"id": f"u{n}"}, "id": f"{number:013d}{n:013d}"})

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(6)]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    assert sandbox.workspace.totals() == {"people": 20, "events": 120}
    assert len(sandbox.requests) == 120


def test_faults_happen_as_configured() -> None:
    order: dict[int, Fault] = {1: ("status", 429, {"Retry-After": "1"}), 2: "reset-before", 3: "reset-after", 4: "slow"}
    with serve(faults=lambda number, _: order.get(number), slow_seconds=0.3) as server, requests.Session() as session:
        session.auth = KEYS
        limited = post(session, server, EVENT)
        assert (limited.status_code, limited.headers["Retry-After"]) == (429, "1")
        with pytest.raises(requests.ConnectionError):
            post(session, server, EVENT)
        assert server.workspace.totals()["events"] == 0
        with pytest.raises(requests.ConnectionError):
            post(session, server, EVENT)
        assert server.workspace.totals()["events"] == 1
        with pytest.raises(requests.ReadTimeout):
            post(session, server, EVENT, timeout=0.1)
        assert post(session, server, EVENT).status_code == 200
        assert server.workspace.totals()["events"] == 3
        assert [request.status for request in server.requests[:3]] == [429, 0, 0]


def test_the_page_of_an_empty_workspace_says_what_to_do(sandbox: CustomerioServer) -> None:
    page = requests.get(sandbox.url, timeout=5).text
    assert "No people yet" in page
    assert "Materialize days" in page


def test_the_people_page_searches_and_pages(sandbox: CustomerioServer, session: requests.Session) -> None:
    post(session, sandbox, *[identify(f"user-{n:03d}", name="Ada", plan="pro") for n in range(120)])
    first = requests.get(sandbox.url, timeout=5).text
    assert first.count("<tr>") == 51
    assert first.index("user-119") < first.index("user-070")
    assert "Page 1 of 3" in first
    last = requests.get(sandbox.url, params={"page": "3"}, timeout=5).text
    assert last.count("<tr>") == 21
    assert requests.get(sandbox.url, params={"q": "USER-007"}, timeout=5).text.count("<tr>") == 2
    assert "Nobody here matches" in requests.get(sandbox.url, params={"q": "none"}, timeout=5).text
    assert requests.get(sandbox.url, params={"page": "-1"}, timeout=5).text == first


def test_the_page_of_a_person_shows_attributes_and_activity_newest_first(
    sandbox: CustomerioServer, session: requests.Session
) -> None:
    older = {**EVENT, "name": "older", "timestamp": 1_772_400_000, "attributes": {"price": 3}}
    newer = {**EVENT, "name": "newer", "timestamp": 1_772_500_000, "action": "page"}
    post(session, sandbox, newer, older, {**identify("u1", plan="pro", city=None), "timestamp": 1_772_300_000})
    page = requests.get(f"{sandbox.url}/people/u1", timeout=5).text
    assert page.index("newer") < page.index("older")
    assert "<details" in page
    assert "2026-03-03 01:06:40" in page
    assert "<td>plan</td><td>pro</td>" in page
    assert "<td>city</td>" not in page
    assert requests.get(f"{sandbox.url}/people/cio_000000000001", timeout=5).text == page
    assert requests.get(f"{sandbox.url}/people/u2", timeout=5).status_code == 404


def test_hostile_values_never_become_markup(sandbox: CustomerioServer, session: requests.Session) -> None:
    evil = "\"'><script>alert(1)</script>"
    person = {"identifiers": {"id": evil}}
    attributes = dict.fromkeys(("name", "plan", "email", evil), evil) | {"nested": {evil: evil}}
    data = {evil: evil}
    post(session, sandbox, {**identify(evil, **attributes)}, {**EVENT, **person, "name": evil, "attributes": data})
    cio_id = sandbox.workspace.people()[0].identifiers["cio_id"]
    for path in ("/", f"/people/cio_{cio_id}", f"/people/{quote(evil, safe='')}"):
        page = requests.get(sandbox.url + path, params={"q": "script"}, timeout=5)
        assert page.status_code == 200
        assert "&lt;script&gt;alert" in page.text
        assert "<script>alert" not in page.text
    assert "<script>alert" not in requests.get(f"{sandbox.url}/people/x{evil}", params={"q": evil}, timeout=5).text
    unmatched = requests.get(sandbox.url, params={"q": evil + "x"}, timeout=5).text
    assert "Nobody here matches" in unmatched
    assert "<script>alert" not in unmatched


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_command_prints_its_url_and_ends_without_output(stop: signal.Signals) -> None:
    command = [sys.executable, "-m", "cio_pipeline.sandbox.customerio.server", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.removeprefix("Customer.io sandbox on ").strip()
        region = requests.get(f"{url}/api/v1/accounts/region", auth=KEYS, timeout=5)
        process.send_signal(stop)
        rest, errors = process.communicate(timeout=5)
    assert region.json()["url"] == url
    assert (process.returncode, rest, errors) == (0, "", "")
