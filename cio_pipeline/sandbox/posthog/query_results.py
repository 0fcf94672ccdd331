"""Formats DuckDB's rows as PostHog's query API does: JSON values, ClickHouse's types, and whether there are more rows."""

from collections.abc import Sequence
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

import orjson

from cio_pipeline.sandbox.posthog.hogql import DEFAULT_ROWS, Statement

TYPES = {"UUID": "UUID", "VARCHAR": "String", "BOOLEAN": "UInt8", "INTEGER": "UInt8", "DOUBLE": "Float64"}


def query_results(
    rows: list[tuple[Any, ...]], columns: list[tuple[str, str]], zone: str, statement: Statement
) -> dict[str, Any]:
    """Returns PostHog's answer with these rows. Only for a query without a LIMIT it says whether there are more.

    columns: the names and DuckDB's types of the values; zone: of the times in the answer.
    """
    paging = {} if statement.limited else {"hasMore": len(rows) > DEFAULT_ROWS, "limit": DEFAULT_ROWS, "offset": 0}
    if not statement.limited:
        rows = rows[:DEFAULT_ROWS]
    values = [_json_values(column, kind, zone) for column, (_, kind) in zip(zip(*rows, strict=True), columns, strict=False)]
    return {
        "results": orjson.dumps(list(zip(*values, strict=True))),
        "columns": [name for name, _ in columns],
        "types": [
            [name, f"DateTime64(6, '{zone}')" if kind == "TIMESTAMP" else TYPES.get(kind, "UInt64")] for name, kind in columns
        ],
        "clickhouse": statement.sql,
        "timings": [],
        **paging,
    }


def _json_values(column: Sequence[Any], kind: str, zone: str) -> Sequence[Any]:
    """A column's values in PostHog's JSON: UUIDs as text, times with an offset."""
    if kind == "UUID":
        return [None if value is None else str(value) for value in column]
    if kind == "BOOLEAN":
        return [None if value is None else int(value) for value in column]
    if kind != "TIMESTAMP":
        return column
    utc, local = UTC, ZoneInfo(zone)
    moments = (value and value.replace(tzinfo=utc).astimezone(local).isoformat() for value in column)
    return [text and text.replace("+00:00", "Z") for text in moments]
