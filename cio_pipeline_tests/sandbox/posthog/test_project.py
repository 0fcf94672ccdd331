"""The PostHog sandbox's answers to queries: the number of rows, their order and time zone, and the cache."""

import time
from collections.abc import Iterator
from datetime import date
from typing import Any

import orjson
import pytest

from cio_pipeline.sandbox.posthog.answers import Refused
from cio_pipeline.sandbox.posthog.product import days
from cio_pipeline.sandbox.posthog.project import Project

EVENT = {
    "uuid": "018f3173-7000-7421-831e-e849e8bb6ffe",
    "event": "some event",
    "distinct_id": "u1",
    "timestamp": "2026-04-01T22:30:00.077000Z",
}


@pytest.fixture
def berlin() -> Iterator[Project]:
    project = Project(zone="Europe/Berlin")
    project.add([EVENT])
    yield project
    project.close()


@pytest.fixture(scope="module")
def generated() -> Iterator[Project]:
    project = Project()
    project.add(days(1, date(2026, 3, 1), 1))
    yield project
    project.close()


def ask(project: Project, query: Any, refresh: str = "blocking", **more: Any) -> dict[str, Any]:
    body = {"query": {"kind": "HogQLQuery", "query": query, **more}, "refresh": refresh}
    answer: dict[str, Any] = orjson.loads(project.query(body).content)
    return answer


def test_a_query_without_a_limit_returns_a_hundred_rows(generated: Project) -> None:
    body = ask(generated, "SELECT event FROM events")
    assert len(body["results"]) == body["limit"] == 100
    assert body["hasMore"] is True


def test_rows_do_not_come_in_order_of_time(generated: Project) -> None:
    times = [row[0] for row in ask(generated, "SELECT timestamp FROM events LIMIT 1000")["results"]]
    assert times != sorted(times)


@pytest.mark.parametrize("asked", [{"kind": "EventsQuery"}, {"query": None}, {"refresh": "async"}])
def test_unsupported_queries_are_refused(berlin: Project, asked: dict[str, Any]) -> None:
    with pytest.raises(Refused) as refused:
        ask(berlin, **{"query": "SELECT 1", **asked})
    assert refused.value.status == 400


def test_times_are_in_the_projects_zone_unless_the_query_opts_out(berlin: Project) -> None:
    query = "SELECT timestamp FROM events WHERE timestamp >= toDateTime64('2026-04-02', 6)"
    utc = {"convertToProjectTimezone": False}
    assert ask(berlin, query)["results"] == [["2026-04-02T00:30:00.077000+02:00"]]
    assert ask(berlin, query, modifiers=utc)["results"] == []
    found = ask(berlin, "SELECT timestamp FROM events", modifiers=utc)["results"]
    assert found == [["2026-04-01T22:30:00.077000Z"]]


def test_a_repeated_query_is_answered_from_the_cache_until_forced(berlin: Project) -> None:
    query = "SELECT count() FROM events"
    assert ask(berlin, query)["results"] == [[1]]
    berlin.add([{**EVENT, "uuid": "018f3173-7000-7421-831e-e849e8bb6fff"}])
    stale, fresh = ask(berlin, query), ask(berlin, query, refresh="force_blocking")
    assert (stale["results"], stale["is_cached"]) == ([[1]], True)
    assert (fresh["results"], fresh["is_cached"]) == ([[2]], False)


def test_fifty_thousand_rows_are_answered_quickly(berlin: Project) -> None:
    berlin.add({**EVENT, "uuid": f"018f3173-7000-7421-831e-{n:012x}", "properties": "{}"} for n in range(50_001))
    started = time.process_time()  # other work on the machine does not count
    body = ask(berlin, "SELECT uuid, event, timestamp, created_at, properties FROM events LIMIT 60000")
    assert len(body["results"]) == 50_000
    assert time.process_time() - started < 3
