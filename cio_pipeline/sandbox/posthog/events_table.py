"""A project's events in DuckDB: stores them, exports them by when they landed, and counts them by day."""

import json
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any
from uuid import UUID

import duckdb
import pyarrow as pa

from cio_pipeline.sandbox.posthog.capture import Event

COLUMNS = pa.schema(
    [
        *((name, pa.string()) for name in ("uuid", "event", "distinct_id")),
        *((name, pa.timestamp("us")) for name in ("timestamp", "created_at")),
        *((name, pa.string()) for name in ("properties", "elements_chain", "person_properties")),
    ]
)
REWRITTEN_COLUMNS = pa.schema([("row", pa.int64()), ("properties", pa.string())])
# In the order of PostHog's sort key, which is not that of time.
INSERT = """
INSERT INTO events BY NAME SELECT * REPLACE (uuid::UUID AS uuid) FROM added
ORDER BY timestamp::DATE, event, hash(distinct_id), hash(uuid)
"""
# PostHog exports what landed in an interval, at most seven days after it happened, or one day before.
EXPORTED = """
SELECT DISTINCT ON (timestamp::DATE, event, distinct_id, uuid) * REPLACE (uuid::VARCHAR AS uuid) FROM events
WHERE created_at >= $start AND created_at < $end
AND timestamp >= $start - INTERVAL 7 DAY AND timestamp < $end + INTERVAL 1 DAY
"""
# How long PostHog keeps `$set` and `$set_once`. An event's other properties stay, and the person's that are stored with it.
SET_RETENTION = timedelta(days=60)
WITH_SETS = "SELECT rowid, properties FROM events WHERE timestamp < $before AND contains(properties, '$set')"
REWRITTEN = "UPDATE events SET properties = rewritten.properties FROM rewritten WHERE events.rowid = rewritten.row"
BY_DAY = "SELECT timestamp::DATE AS day, count(*) FROM events GROUP BY day ORDER BY day"


def to_table(events: Iterable[Event]) -> pa.Table:
    """Converts events, as `product.days` returns them, to rows. `properties` may also be JSON text."""
    return pa.Table.from_pylist([_row(event) for event in events], schema=COLUMNS)


def insert(database: duckdb.DuckDBPyConnection, table: pa.Table) -> None:
    """Stores the rows of `to_table` in PostHog's order."""
    database.register("added", table)
    database.execute(INSERT)


def exported(database: duckdb.DuckDBPyConnection, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """Returns the events of an export of this interval, with times in UTC."""
    rows = database.execute(EXPORTED, {"start": _naive(start), "end": _naive(end)}).fetchall()
    columns = [name for name, *_ in database.description]
    return [dict(zip(columns, row, strict=True)) for row in rows]


def drop_old_sets(database: duckdb.DuckDBPyConnection, now: datetime) -> int:
    """Drops `$set` and `$set_once` of events that are over 60 days old at `now`. Returns how many events have lost one."""
    found = database.execute(WITH_SETS, {"before": _naive(now - SET_RETENTION)}).fetchall()
    rewritten = [{"row": row, "properties": _without_sets(text)} for row, text in found]
    database.register("rewritten", pa.Table.from_pylist(rewritten, schema=REWRITTEN_COLUMNS))
    database.execute(REWRITTEN)
    return sum(old != new["properties"] for (_, old), new in zip(found, rewritten, strict=True))


def count_by_day(database: duckdb.DuckDBPyConnection) -> list[tuple[date, int]]:
    """Counts the events of each day in UTC."""
    return database.execute(BY_DAY).fetchall()


def _row(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "uuid": str(UUID(event["uuid"])),
        "event": _json_text(event["event"]),
        "distinct_id": _json_text(event["distinct_id"]),
        "timestamp": _utc(event["timestamp"]),
        "created_at": _utc(event.get("created_at", event["timestamp"])),
        "properties": _json_text(event.get("properties", {})),
        "elements_chain": event.get("elements_chain", ""),
        "person_properties": _json_text(event.get("person_properties") or ""),
    }


def _without_sets(text: str) -> str:
    try:
        properties = json.loads(text)
    except ValueError:
        return text
    if not isinstance(properties, dict):
        return text
    return _json_text({name: value for name, value in properties.items() if name not in ("$set", "$set_once")})


def _json_text(value: object) -> str:
    """Text as it is, anything else as compact JSON. An unpaired surrogate is an escape, as JavaScript writes it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace").decode()


def _utc(text: str) -> datetime:
    return _naive(datetime.fromisoformat(text))


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
