"""The PostHog sandbox over HTTP: keys, refusals, queue, added events, the old PostHog, the command line."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from typing import Any

import orjson
import pytest
import requests

from cio_pipeline.sandbox.posthog.legacy import EventsList
from cio_pipeline.sandbox.posthog.product import days
from cio_pipeline.sandbox.posthog.project import Project
from cio_pipeline.sandbox.posthog.server import PostHog, serve

EVENT = {
    "uuid": "018f3173-7000-7421-831e-e849e8bb6ffe",
    "event": "some event",
    "distinct_id": "u1",
    "timestamp": "2026-04-01T22:30:00.077000Z",
    "properties": {"$set": {"city": "Łódź"}},
}


@pytest.fixture(scope="module")
def posthog() -> Iterator[PostHog]:
    with serve(days(1, date(2026, 3, 1), 2)) as server:
        yield server


@pytest.fixture
def berlin() -> Iterator[PostHog]:
    with serve([EVENT], Project(zone="Europe/Berlin", queue_seconds=0.1)) as server:
        yield server


def ask(
    server: PostHog, query: str, *, key: str = "phx_sandbox", project: str = "1", refresh: str = "blocking", **more: Any
) -> requests.Response:
    body = {"query": {"kind": "HogQLQuery", "query": query, **more}, "refresh": refresh}
    headers = {"Authorization": f"Bearer {key}"}
    return requests.post(f"{server.url}/api/projects/{project}/query/", json=body, headers=headers, timeout=10)


def test_an_answer_has_posthogs_format(posthog: PostHog) -> None:
    answer = ask(posthog, "SELECT uuid, timestamp, properties FROM events WHERE event = '$identify' LIMIT 2")
    body = answer.json()
    assert body["columns"] == ["uuid", "timestamp", "properties"]
    assert body["types"] == [["uuid", "UUID"], ["timestamp", "DateTime64(6, 'UTC')"], ["properties", "String"]]
    uuid, timestamp, properties = body["results"][0]
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", uuid)
    assert re.fullmatch(r"2026-03-0\dT\d\d:\d\d:\d\d\.\d{6}Z", timestamp)
    assert "$anon_distinct_id" in orjson.loads(properties)
    assert "hasMore" not in body
    assert int(answer.headers["X-PostHog-Query-Bytes-Read"]) > 0
    assert int(answer.headers["X-PostHog-Query-Budget-Remaining-Bytes"]) > 0


@pytest.mark.parametrize(
    ("key", "project", "status", "code"),
    [
        ("phx_wrong", "1", 401, "authentication_failed"),
        ("phx_sandbox_unscoped", "1", 403, "permission_denied"),
        ("phx_sandbox", "2", 404, "not_found"),
    ],
)
def test_a_wrong_key_or_project_is_refused(posthog: PostHog, key: str, project: str, status: int, code: str) -> None:
    answer = ask(posthog, "SELECT 1", key=key, project=project)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("query", ["SELECT nothing FROM events", "SELECT event FROM events LIMIT 5 OFFSET 5"])
def test_a_bad_query_is_a_validation_error(posthog: PostHog, query: str) -> None:
    answer = ask(posthog, query)
    assert answer.status_code == 400
    assert answer.json()["type"] == "validation_error"
    assert answer.json()["code"] == "hogql_query_error"


def test_a_fourth_query_at_once_waits_and_is_throttled(berlin: PostHog) -> None:
    berlin.project.query_seconds = 0.6
    with ThreadPoolExecutor(4) as pool:
        statuses = sorted(pool.map(lambda n: ask(berlin, f"SELECT {n}").status_code, range(4)))
    assert statuses == [200, 200, 200, 429]
    assert berlin.project.account() == {"requests": {"200": 3, "429": 1}, "max_at_once": 3}


def test_an_unpaired_surrogate_in_an_added_event_is_kept(berlin: PostHog) -> None:
    text = '{"note": "half \\ud800 of \\u00e9"}'
    late = [
        {**EVENT, "event": "late", "properties": text},
        {**EVENT, "event": "parsed", "properties": {"note": "\ud800"}},
    ]
    assert requests.post(f"{berlin.url}/sandbox/events", json=late, timeout=5).json() == {"added": 2}
    query = "SELECT event, properties FROM events WHERE event != 'some event' ORDER BY event"
    assert ask(berlin, query).json()["results"] == [["late", text], ["parsed", '{"note":"\\ud800"}']]


def test_an_event_that_cannot_be_stored_is_refused(berlin: PostHog) -> None:
    answer = requests.post(f"{berlin.url}/sandbox/events", json=[{"event": "no uuid"}], timeout=5)
    assert (answer.status_code, answer.json()["type"]) == (400, "validation_error")


def test_the_status_page_shows_events_by_day(posthog: PostHog) -> None:
    page = requests.get(posthog.url, timeout=5).text
    assert "project 1" in page
    assert "2026-03-02" in page


def test_an_old_posthog_has_no_queries_and_a_next_that_skips_ties() -> None:
    with serve(project=Project(legacy=EventsList(100))) as server:
        server.add({**EVENT, "uuid": f"018f3173-7000-7421-831e-{n:012x}"} for n in range(150))
        assert ask(server, "SELECT 1").status_code == 404
        headers = {"Authorization": "Bearer phx_sandbox"}
        asked = {"after": "2026-04-01", "before": "2026-04-02", "limit": "1000", "orderBy": '["timestamp"]'}
        page = requests.get(f"{server.url}/api/projects/1/events/", params=asked, headers=headers, timeout=5).json()
        assert len(page["results"]) == 100
        assert page["results"][0]["timestamp"] == "2026-04-01T22:30:00.077000+00:00"
        assert requests.get(page["next"], headers=headers, timeout=5).json() == {"next": None, "results": []}


def test_the_command_prints_its_url_and_ends_without_output() -> None:
    command = [sys.executable, "-m", "cio_pipeline.sandbox.posthog.server", "--days", "0", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert re.fullmatch(r"PostHog sandbox on http://127\.0\.0\.1:\d+\n", line)
    with requests.Session() as idle:
        assert idle.get(line.split()[-1], timeout=5).ok
        process.send_signal(signal.SIGTERM)
        rest, errors = process.communicate(timeout=10)
    assert (process.returncode, rest, errors) == (0, "", "")


def test_old_sets_are_dropped_on_request() -> None:
    with serve([EVENT]) as server:
        query = "SELECT properties FROM events LIMIT 1"
        assert ask(server, query).json()["results"] == [['{"$set":{"city":"Łódź"}}']]
        assert server.project.drop_old_sets(datetime(2026, 5, 31, 22, tzinfo=UTC)) == 0
        assert server.project.drop_old_sets(datetime(2026, 5, 31, 23, tzinfo=UTC)) == 1
        assert ask(server, query).json()["results"] == [["{}"]]


ENDED_WHILE_STORING = """
import os, signal, threading
from cio_pipeline.sandbox.posthog import events_table, server

def insert(database, table):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    database.execute("SELECT sum(sqrt(range)) FROM range(100_000_000)")

events_table.insert = insert
server.main()
"""


def test_the_command_ends_without_output_while_it_still_stores_its_days() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", ENDED_WHILE_STORING, "--days", "1"], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
