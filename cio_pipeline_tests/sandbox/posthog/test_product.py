"""The demo's data: the same days for the same seed, as PostHog stores events."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from datetime import date
from typing import Any

import pytest

from cio_pipeline.sandbox.posthog.product import days

START = date(2026, 3, 1)
PROGRAM = """
import hashlib, json
from datetime import date
from cio_pipeline.sandbox.posthog.product import days
print(hashlib.sha256(json.dumps(list(days(1, date(2026, 3, 1), 3))).encode()).hexdigest())
"""


@pytest.fixture(scope="module")
def events() -> list[dict[str, Any]]:
    return list(days(1, START, 6))


def named(events: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [event for event in events if event["event"] == name]


def test_a_seed_gives_the_same_bytes_in_another_process() -> None:
    here = hashlib.sha256(json.dumps(list(days(1, START, 3))).encode()).hexdigest()
    command = [sys.executable, "-c", PROGRAM]
    there = subprocess.run(command, capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert there.stdout.strip() == here
    assert list(days(2, START, 1)) != list(days(1, START, 1))


def test_a_day_is_the_same_however_many_days_are_generated(events: list[dict[str, Any]]) -> None:
    three = list(days(1, START, 3))
    assert three == events[: len(three)]


def test_days_have_about_the_promised_number_of_events_and_scale(events: list[dict[str, Any]]) -> None:
    by_day = Counter(event["timestamp"][:10] for event in events)
    assert sorted(by_day) == [f"2026-03-0{day}" for day in range(1, 7)]
    assert all(900 < count < 2200 for count in by_day.values())
    assert len(list(days(1, START, 1, visitors_per_day=1000))) > 3 * by_day["2026-03-01"]


def test_events_are_in_order_of_time_with_a_uuid_of_their_own(events: list[dict[str, Any]]) -> None:
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)
    assert len({event["uuid"] for event in events}) == len(events)
    assert all(event["created_at"] > event["timestamp"] for event in events)


def test_people_browse_anonymously_and_sign_up_that_day_or_later(events: list[dict[str, Any]]) -> None:
    first_seen: dict[str, str] = {}
    for event in events:
        first_seen.setdefault(event["distinct_id"], event["timestamp"])
    waits = set()
    for identify in named(events, "$identify"):
        anonymous_id = identify["properties"]["$anon_distinct_id"]
        assert first_seen[anonymous_id] < identify["timestamp"]
        waits.add(int(identify["timestamp"][8:10]) - int(first_seen[anonymous_id][8:10]))
        assert identify["properties"]["$set"]["email"].endswith("@example.com")
    assert {0, 1} <= waits


def test_anonymous_events_have_no_email(events: list[dict[str, Any]]) -> None:
    anonymous = {identify["properties"]["$anon_distinct_id"] for identify in named(events, "$identify")}
    assert not any("email" in event["person_properties"] for event in events if event["distinct_id"] in anonymous)


def test_ingestion_adds_properties_to_web_events_and_not_to_server_events(events: list[dict[str, Any]]) -> None:
    properties = next(event["properties"] for event in named(events, "$pageview") if "$browser" in event["properties"])
    assert properties["$set"]["$browser"] == properties["$set_once"]["$initial_browser"] == properties["$browser"]
    assert "$browser" not in named(events, "invoice paid")[0]["properties"]


def test_all_kinds_of_event_that_the_pipeline_must_distinguish_occur(events: list[dict[str, Any]]) -> None:
    kinds = {"$pageview", "$screen", "$identify", "$create_alias", "$groupidentify", "order placed", "plan changed"}
    assert kinds <= {event["event"] for event in events}
    assert {"recipient"} <= {name for event in events for name in event["properties"]}
    assert any(not event["distinct_id"].strip() for event in events)
    assert any(len(event["event"].encode()) > 100 for event in events)
