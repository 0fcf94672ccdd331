"""The tables `posthog_events` and `identity_history`: PostHog's events, and what the rules need from their JSON as columns."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from pathlib import Path

import pyarrow as pa

from cio_pipeline.posthog.source import EVENT_SCHEMA
from cio_pipeline.rules.properties import PARSED_COLUMNS, parse_properties
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import Version

KEPT_EVENTS = pa.schema([*EVENT_SCHEMA, *PARSED_COLUMNS])

DECIDING = (
    "attribute_state",
    "json_text",
    "packed_ids",
    *(f"pipeline/{name}" for name in ("accounting", "by_customer", "classification", "derive", "events", "learn")),
    "rules",
)
"""The modules and subpackages that decide what is learned and derived."""

READ_BY = "read by"
"""The entry of a version's `metadata` that says which code has parsed its events' JSON (`code_hash`)."""


def with_parsed_columns(events: pa.Table) -> pa.Table:
    """Returns the events with the columns `PARSED_COLUMNS` added."""
    columns = (events[name].combine_chunks().cast(pa.large_string()) for name in ("event", "properties", "person_properties"))
    parsed = parse_properties(*(column.cast(pa.large_binary()) for column in columns))
    return pa.table([*events.columns, *parsed.columns], schema=KEPT_EVENTS)


def shard_of_events(tables: Tables, table: str, day: str, version: Version, shard: int, columns: list[str]) -> pa.Table:
    """Some of the columns `KEPT_EVENTS` of a shard. JSON that other code has parsed is parsed again. Raises `StorageError`."""
    if version.metadata.get(READ_BY) == code_hash():
        return tables.shard(table, day, version, shard, columns)
    return with_parsed_columns(tables.shard(table, day, version, shard, EVENT_SCHEMA.names)).select(columns)


def events_of(tables: Tables, day: str, version: Version, distinct_ids: list[str]) -> Iterator[pa.Table]:
    """Yields the events of these distinct_ids in a day's version, as `KEPT_EVENTS`. Raises `StorageError`."""
    is_read = version.metadata.get(READ_BY) == code_hash()
    for rows in tables.rows_where("posthog_events", day, version, "distinct_id", distinct_ids):
        yield rows if is_read else with_parsed_columns(rows.select(EVENT_SCHEMA.names))


def code_hash() -> str:
    """Returns the hash of the code that decides what is learned and derived. When it changes, both are done again."""
    return hash_of_code(*DECIDING)


@cache
def hash_of_code(*names: str) -> str:
    """Returns the hash of these modules and subpackages of `cio_pipeline`."""
    here = Path(__file__).parent.parent
    modules = [path for name in names for path in (here / f"{name}.py", *sorted(here.glob(f"{name}/**/*.py"))) if path.exists()]
    return sha256(b"".join(module.read_bytes() for module in modules)).hexdigest()
