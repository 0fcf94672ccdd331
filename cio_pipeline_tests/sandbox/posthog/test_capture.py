"""What PostHog's ingestion adds to generated events."""

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from cio_pipeline.sandbox.posthog.capture import Person, Session

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def person() -> Person:
    return Person(1, "Ada", "ada@example.com", "anonymous", None, ("Chrome", "Linux"), {}, mobile=False)


def session(person: Person, **client: str) -> Session:
    return Session(person, NOON, random.Random(1), client, timedelta(hours=2))


def test_the_first_browser_and_campaign_are_kept_besides_the_latest(person: Person) -> None:
    first = session(person, **{"$browser": "Chrome", "utm_source": "newsletter"})
    first.capture("$pageview")
    session(person, **{"$browser": "Safari"}).capture("$pageview")
    assert first.events[0]["properties"]["$set"] == {"$browser": "Chrome", "utm_source": "newsletter"}
    assert first.events[0]["properties"]["$set_once"] == {"$initial_browser": "Chrome", "$initial_utm_source": "newsletter"}
    assert person.properties == {
        "$browser": "Safari",
        "$initial_browser": "Chrome",
        "utm_source": "newsletter",
        "$initial_utm_source": "newsletter",
    }


def test_a_server_event_sets_only_its_own_set(person: Person) -> None:
    server = session(person, **{"$lib": "posthog-python"})
    server.capture("invoice paid", amount=3)
    assert server.events[0]["properties"] == {"$lib": "posthog-python", "amount": 3}
    assert person.properties == {}


def test_an_event_has_the_persons_properties_at_its_time(person: Person) -> None:
    web = session(person)
    web.capture("a", **{"$set": {"plan": "free", "trial": True}})
    web.capture("b", **{"$set": {"plan": "pro"}, "$unset": ["trial", "never set"]})
    assert [event["person_properties"] for event in web.events] == [{"plan": "free", "trial": True}, {"plan": "pro"}]


def test_a_sessions_events_are_in_order_and_arrive_later(person: Person) -> None:
    web = session(person)
    web.capture("a")
    person.distinct_id = "user-1"
    web.capture("b")
    assert [event["distinct_id"] for event in web.events] == ["anonymous", "user-1"]
    first, second = web.events
    assert f"{NOON:%Y-%m-%dT%H:%M:%S}" < first["timestamp"] < second["timestamp"] < first["created_at"]
    assert first["created_at"][:13] == "2026-03-01T14"
    assert (UUID(first["uuid"]).version, UUID(first["uuid"]).int >> 80) == (7, _milliseconds(first["timestamp"]))


def _milliseconds(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp() * 1000)
