"""The PostHog sandbox answers and refuses HogQL queries as PostHog does."""

from typing import Any

import duckdb
import pytest

from cio_pipeline.sandbox.posthog.hogql import SCHEMA, HogQLError, to_duckdb

FIRST, SECOND, THIRD = (
    "10000000-0000-0000-0000-000000000001",
    "00000000-0000-0000-0000-000000000002",
    "018f3173-7000-7421-831e-e849e8bb6ffe",
)
ROWS = (
    (SECOND, "$identify", '{"$set":{"email":"a@example.com","age":7}}', "2026-03-01 10:00:00.5"),
    (FIRST, "$pageview", '{"half":"\\ud800","$set":{"email":"lost@example.com"}}', "2026-03-01 11:00:00"),
    (THIRD, "it's \\ {odd}", '{"$set":{"email":null}}', "2026-03-02 11:00:00"),
)
IDS = "SELECT uuid FROM events WHERE "


@pytest.fixture(scope="module")
def database() -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect()
    for statement in SCHEMA:
        connection.execute(statement)
    insert = "INSERT INTO events SELECT ?::UUID, ?, ?, ?::TIMESTAMP, 'd', '', now()::TIMESTAMP, '{\"email\":\"p\"}'"
    connection.executemany(insert, ROWS)
    return connection


def rows(database: duckdb.DuckDBPyConnection, query: str, zone: str = "UTC", **values: Any) -> list[Any]:
    found = database.execute(to_duckdb(query, values, zone).sql).fetchall()
    return [row[0] if len(row) == 1 else row for row in found]


@pytest.mark.parametrize(
    ("condition", "values", "found"),
    [
        ("event = {name}", {"name": "it's \\ {odd}"}, [THIRD]),
        ("event IN {names}", {"names": ["it's \\ {odd}", "$identify"]}, [SECOND, THIRD]),
        ("event NOT IN {names}", {"names": ["$identify"]}, [FIRST, THIRD]),
        ("event LIKE '$%' AND NOT (event = '$identify' OR event = 'no')", {}, [FIRST]),
        ("timestamp > toDateTime64({t}, 6, 'UTC') AND timestamp < toDateTime64('2026-03-02', 6, 'UTC')", {
            "t": "2026-03-01T10:30Z"
        }, [FIRST]),
        ("cityHash64(distinct_id) >= {low} AND cityHash64(distinct_id) < {high}", {"low": 0, "high": 2**64 - 1}, [
            FIRST, SECOND, THIRD
        ]),
        ("cityHash64(uuid) >= {low}", {"low": 2**64 - 1}, []),
        ("poe.properties LIKE '%\"p\"%' AND event = '$identify' -- {comment}", {}, [SECOND]),
    ],
)  # fmt: skip
def test_a_condition_finds_what_clickhouse_would(
    database: duckdb.DuckDBPyConnection, condition: str, values: dict[str, Any], found: list[str]
) -> None:
    assert sorted(map(str, rows(database, f"{IDS} {condition}", **values))) == sorted(found)


def test_events_are_counted_by_name(database: duckdb.DuckDBPyConnection) -> None:
    query = "SELECT event, count() AS n FROM events WHERE event = '$identify' GROUP BY event LIMIT 5"
    assert rows(database, query) == [("$identify", 1)]


def test_a_time_without_a_zone_is_in_the_projects_time_zone(database: duckdb.DuckDBPyConnection) -> None:
    query = f"{IDS} timestamp < toDateTime64('2026-03-02 06:30:00', 6)"
    assert THIRD not in map(str, rows(database, query))
    assert THIRD in map(str, rows(database, query, zone="America/New_York"))
    assert THIRD not in map(str, rows(database, query.replace("30:00'", "30:00Z'"), zone="America/New_York"))


def test_a_limit_is_lowered_to_what_posthog_returns(database: duckdb.DuckDBPyConnection) -> None:
    assert to_duckdb("SELECT event FROM events LIMIT 60000", {}).sql.endswith("LIMIT 50000")
    assert not to_duckdb("SELECT event FROM events", {}).limited
    assert rows(database, "SELECT 1") == [1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT person_properties FROM events", "Unable to resolve field: person_properties"),
        ("SELECT inserted_at FROM events", "Unable to resolve field: inserted_at"),
        ("SELECT id FROM persons", "Unknown table `persons`"),
        ("SELECT content FROM read_text('x')", "Unknown table"),
        ("SELECT farmHash64(event) FROM events", "Unsupported function call 'farmHash64"),
        ("SELECT event FROM events LIMIT 5 OFFSET 5", "OFFSET is not supported"),
        ("SELECT event FROM events WHERE event = {name}", "Unresolved placeholder: {name}"),
        ("SELEC event", "Syntax error"),
        ("DROP TABLE events", "Syntax error"),
        ("SELECT (", "Syntax error"),
    ],
)
def test_queries_that_posthog_would_refuse_are_refused(query: str, message: str) -> None:
    with pytest.raises(HogQLError) as refused:
        to_duckdb(query, {})
    assert message in str(refused.value)
