"""The Track API's client: wrong settings are named, the region is checked, and one rate limit holds for everybody."""

from __future__ import annotations

import io
import threading
import time
from typing import Any

import pytest
import urllib3

from cio_pipeline.customerio.client import PROBE, NotDelivered, TrackClient, WholeRequestRefused
from cio_pipeline.customerio.rate_limit import RateLimit, Stopped
from cio_pipeline.http import retry as http
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline_tests.customerio.clock import Clock


def client(url: str, requests_per_second: float = 1000) -> TrackClient:
    return TrackClient(url, "sandbox", "sandbox-key", requests_per_second)


def answering(monkeypatch: pytest.MonkeyPatch, status: int, body: str, **headers: str) -> None:
    """Any request gets this answer, whatever host it was for."""

    def urlopen(*_: Any, **__: Any) -> urllib3.HTTPResponse:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        answer = urllib3.HTTPResponse(io.BytesIO(body.encode()), given, preload_content=False)
        answer.status = status
        return answer

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", urlopen)


@pytest.mark.parametrize(
    "body",
    [
        '{"url": "https://track-eu.customer.io", "region": "eu", "environment_id": 3}',
        '{"region": "eu"}',
        '{"data_center": "eu"}',
    ],
)
def test_the_host_of_the_workspaces_region_is_named(monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    answering(monkeypatch, 200, body)
    with pytest.raises(NotDelivered) as wrong:
        client("https://track.customer.io").check()
    assert str(wrong.value) == (
        "CUSTOMERIO_TRACKING_ENDPOINT is track.customer.io, but this workspace is served by track-eu.customer.io."
    )
    client("https://track-eu.customer.io").check()
    client("https://proxy.example.com").check()


def test_a_redirect_is_not_followed_and_its_host_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, 302, "", Location="https://track-eu.customer.io/api/v2/batch")
    with pytest.raises(NotDelivered, match=r"^CUSTOMERIO_TRACKING_ENDPOINT .* sends to track-eu\.customer\.io \(status 302\)"):
        client("https://track.customer.io").batch([b"{}"])


ODD: list[tuple[int, str]] = [
    *(
        (status, "{}")
        for status in (103, 199, 201, 202, 204, 206, 226, 402, 404, 405, 409, 410, 418, 425, 426, 451, 499, 600, 999)
    ),
    *((200, body) for body in ("", " ", "<html>Please log in</html>", "null", "true", "0", '""', "[]", "[{}]", "{", "{}{}")),
    *((200, body) for body in ('{"status": "ok"}', '{"meta": {}}', '{"errors": null}', '{"errors": {}}', "[" * 100_000)),
    *((200, body) for body in ("\ufeff{}", '{"errors": [{"batch_index": 0}], "errors": []}', '{"errors": [], "errors": []}')),
]


@pytest.mark.parametrize(("status", "body"), ODD)
def test_what_is_not_the_track_api_is_tried_again_and_is_no_refusal_and_no_acknowledgement(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, status: int, body: str
) -> None:
    answering(monkeypatch, status, body)
    path = r"\(status \d+ for /api/v2/batch\)"
    said = rf"^Customer\.io \(track\.customer\.io\) gave no usable .* in 9 tries: .* {path}: is CUSTOMERIO_\w+ right\?$"
    with pytest.raises(http.UnusableAnswer, match=said):
        client("https://track.customer.io").batch([b"{}"])
    with pytest.raises(http.UnusableAnswer) as wrong:
        client("https://track.customer.io").event("someone@example.com", b"{}")
    assert "someone" not in str(wrong.value)


@pytest.mark.parametrize(
    ("status", "body"),
    [*ODD, (200, "{}"), (200, '{"url": "https://example.com"}'), (200, '{"region": "xx"}'), (207, "{}"), (400, "{}")],
)
def test_what_does_not_tell_its_region_is_not_customerio(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, status: int, body: str
) -> None:
    answering(monkeypatch, status, body)
    with pytest.raises(NotDelivered, match=r"in 3 tries: .* is CUSTOMERIO_TRACKING_ENDPOINT right\?$"):
        client("https://proxy.example.com").check()


def test_a_maintenance_page_in_between_is_waited_out(clock: Clock) -> None:
    with customerio.serve() as workspace:
        answer, odd = workspace.answer, [(200, "Back soon"), (404, {}), (204, "")]
        workspace.answer = lambda *request: odd.pop() if odd else answer(*request)  # type: ignore[method-assign, assignment]
        client(workspace.url).check()
        odd += [(200, "Back soon"), (404, {}), (204, "")]
        assert client(workspace.url).batch([PROBE]) == {}


@pytest.mark.parametrize(
    "body",
    [
        '{"errors": [{"batch_index": 0}], "errors": [{"batch_index": 1}]}',
        '{"errors": [{"batch_index": 0, "batch_index": 1}]}',
        '{"errors": [{"batch_index": 0}], "\\u0065rrors": []}',
        '{"errors": [{"batch_index": -1}]}',
        '{"errors": [{"batch_index": 2}]}',
    ],
)
def test_an_answer_that_has_a_name_twice_or_names_no_item_tells_of_none_whether_it_was_taken(
    monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    answering(monkeypatch, 207, body)
    with pytest.raises(WholeRequestRefused):
        client("https://track.customer.io").batch([b"{}", b"{}"])


def test_a_reason_that_quotes_an_email_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    body = '{"errors": [{"batch_index": 0, "reason": "taken", "field": "jane@example.com", "message": "jane@example.com"}]}'
    answering(monkeypatch, 207, body)
    assert client("https://track.customer.io").batch([b"{}"]) == {0: ("taken j***@e***.com", "jane@example.com")}


def test_the_credentials_are_checked_by_one_request(workspace: customerio.CustomerioServer) -> None:
    client(workspace.url).check()
    assert [(request.method, request.path) for request in workspace.requests] == [("GET", "/api/v1/accounts/region")]


def test_the_rate_limit_holds_over_threads() -> None:
    limit, times, lock = RateLimit(200), list[float](), threading.Lock()

    def go() -> None:
        for _ in range(20):
            limit.wait()
            with lock:
                times.append(time.monotonic())

    threads = [threading.Thread(target=go) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(times) - min(times) >= 79 / 200


def test_a_pause_of_the_service_is_everybodys_and_one_of_a_connection_is_not() -> None:
    limit = RateLimit(1000)
    resting = threading.Thread(target=limit.pause, args=(0.3, True))
    started = time.monotonic()
    resting.start()
    time.sleep(0.1)
    limit.wait()
    assert time.monotonic() - started >= 0.3
    resting.join()
    resting = threading.Thread(target=limit.pause, args=(0.3, False))
    resting.start()
    started = time.monotonic()
    limit.wait()
    assert time.monotonic() - started < 0.2
    resting.join()


def test_a_stop_wakes_up_who_waits() -> None:
    limit = RateLimit(1000)
    stopped: list[bool] = []

    def rest() -> None:
        try:
            limit.pause(3600, True)
        except Stopped:
            stopped.append(True)

    resting = threading.Thread(target=rest)
    resting.start()
    limit.stop()
    resting.join(10)
    assert stopped == [True]
    with pytest.raises(Stopped):
        limit.wait()
