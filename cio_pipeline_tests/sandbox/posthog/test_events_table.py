"""The PostHog sandbox's events in DuckDB, and their exports."""

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any

import duckdb
import pytest

from cio_pipeline.sandbox.posthog.events_table import count_by_day, drop_old_sets, exported, insert, to_table
from cio_pipeline.sandbox.posthog.hogql import SCHEMA

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
DAY = (datetime(2026, 3, 10, tzinfo=UTC), datetime(2026, 3, 11, tzinfo=UTC))


@pytest.fixture
def database() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as connection:
        for statement in SCHEMA:
            connection.execute(statement)
        yield connection


def event(number: int, at: datetime = NOON, **more: Any) -> dict[str, Any]:
    named = {"uuid": f"018f3173-7000-7421-831e-{number:012x}", "event": "e", "distinct_id": "u"}
    return {**named, "timestamp": at.isoformat(), **more}


def test_an_event_is_stored_as_text_and_its_times_in_utc(database: duckdb.DuckDBPyConnection) -> None:
    given = event(1, distinct_id=7, properties={"a": "é\ud800"}, timestamp="2026-03-10T13:00:00+01:00")
    insert(database, to_table([given]))
    (stored,) = exported(database, *DAY)
    assert stored == {
        **event(1, distinct_id="7", properties='{"a":"é\\ud800"}', person_properties="", elements_chain=""),
        "timestamp": NOON.replace(tzinfo=None),
        "created_at": NOON.replace(tzinfo=None),
    }


def test_an_export_has_each_event_once_that_landed_within_it_at_most_a_week_late(
    database: duckdb.DuckDBPyConnection,
) -> None:
    landed: dict[str, Any] = {"created_at": NOON.isoformat()}
    late = [event(number, NOON - timedelta(days=number), **landed) for number in range(10)]
    early = [event(20, NOON + timedelta(days=1), **landed), event(21, NOON + timedelta(days=2), **landed)]
    another_day = [event(30, created_at=DAY[1].isoformat())]
    insert(database, to_table([*late, *early, *another_day, event(0, **landed)]))
    numbers = [int(found["uuid"][-12:], 16) for found in exported(database, *DAY)]
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5, 6, 7, 20]


def test_events_are_counted_by_day(database: duckdb.DuckDBPyConnection) -> None:
    insert(database, to_table([event(1), event(2, NOON + timedelta(days=1)), event(3)]))
    assert count_by_day(database) == [(date(2026, 3, 10), 2), (date(2026, 3, 11), 1)]


def test_events_over_60_days_old_lose_their_sets_and_keep_the_rest(database: duckdb.DuckDBPyConnection) -> None:
    whole = {"$set": {"a": 1}, "$set_once": {"b": 2}, "$unset": ["c"], "d": {"$set": 1}}
    person = {"a": 1}
    old = event(1, properties=whole, person_properties=person)
    young = event(2, NOON + timedelta(seconds=1), properties=whole)
    insert(database, to_table([old, young, event(3, properties="no JSON $set"), event(4, properties=["$set"])]))
    assert drop_old_sets(database, NOON + timedelta(days=60, seconds=1)) == 1
    found = {int(row["uuid"][-12:], 16): row for row in exported(database, *DAY)}
    assert found[1]["properties"] == '{"$unset":["c"],"d":{"$set":1}}'
    assert found[1]["person_properties"] == '{"a":1}'
    assert found[2]["properties"] == to_table([young])["properties"][0].as_py()
    assert (found[3]["properties"], found[4]["properties"]) == ("no JSON $set", '["$set"]')
    assert drop_old_sets(database, NOON + timedelta(days=60, seconds=1)) == 0


def test_an_export_has_all_events_that_share_a_uuid(database: duckdb.DuckDBPyConnection) -> None:
    insert(database, to_table([event(1), event(1), {**event(1), "event": "f"}, {**event(1), "distinct_id": "v"}]))
    assert sorted((row["event"], row["distinct_id"]) for row in exported(database, *DAY)) == [
        ("e", "u"),
        ("e", "v"),
        ("f", "u"),
    ]
