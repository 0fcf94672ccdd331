"""Protects what the generated events hold beside what the product sent: what PostHog's ingestion adds and knows by then."""

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


def test_the_first_browser_and_campaign_stay_beside_the_latest(person: Person) -> None:
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


def test_a_server_event_sets_only_what_it_says(person: Person) -> None:
    server = session(person, **{"$lib": "posthog-python"})
    server.capture("invoice paid", amount=3)
    assert server.events[0]["properties"] == {"$lib": "posthog-python", "amount": 3}
    assert person.properties == {}


def test_an_event_keeps_what_was_known_of_the_person_by_then(person: Person) -> None:
    web = session(person)
    web.capture("a", **{"$set": {"plan": "free", "trial": True}})
    web.capture("b", **{"$set": {"plan": "pro"}, "$unset": ["trial", "never set"]})
    assert [event["person_properties"] for event in web.events] == [{"plan": "free", "trial": True}, {"plan": "pro"}]


def test_a_session_goes_on_in_time_and_its_events_arrive_later(person: Person) -> None:
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
    return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)
