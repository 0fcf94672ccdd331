"""Writes the events of a day to `posthog_events`: each once, by distinct_id and time.

A `$set` that PostHog has dropped since the last extraction is copied from the table of that time (R20). An extraction fails
unless the rows that were read are the rows that were written, plus duplicates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from typing import Any

import pyarrow as pa

from cio_pipeline.pipeline.events import KEPT_EVENTS, READ_BY, code_hash, hash_of_code
from cio_pipeline.pipeline.extract_shard import (
    ExtractionCounts,
    StreamSummary,
    UsePersonProperties,
    WriteContext,
    write_shard,
)
from cio_pipeline.posthog.source import EVENT_SCHEMA, NEEDED, EventStream, NotExtracted
from cio_pipeline.rules import dropped_set, restored_set
from cio_pipeline.rules.columns import constant
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.rules.set_properties import any_has_set
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.shuffle import SHARD_ROWS, shuffle
from cio_pipeline.tables.tables import Tables
from cio_pipeline.worker_pool import SHARDS_IN_THIS_PROCESS, load_workers, map_shards

KNOWN = (*restored_set.IDENTITY, "timestamp", "properties", "person_properties")
SPILLED = pa.schema([*EVENT_SCHEMA, (NEEDED, pa.bool_()), ("earlier", pa.bool_())])
"""`earlier`: whether the row is what an earlier extraction counts."""

ATTRIBUTES_FROM, ALLOWLIST = "attributes from", "allowlist"
"""The settings of an extraction, as they are stored with a day's events."""

EVENTS_TABLE, HISTORY_TABLE = "posthog_events", "identity_history"

READING = ("json_text", "pipeline/events", "pipeline/extract", "pipeline/extract_shard", "posthog", "rules", "tables")
"""The modules and subpackages that decide which events are read, and what is kept of them."""


def reusable_extraction(tables: Tables, day: str, fingerprint: str | None) -> ExtractionCounts | None:
    """Returns the counts of the last extraction if its table can stay: the same events (`EventStream.fingerprint`), the same
    code, and intact files. Otherwise, or if that is unknown, returns None.
    """
    version = tables.find_version(EVENTS_TABLE, day)
    if fingerprint is None or version is None or version.metadata.get("fingerprint") != _with_reading_code(fingerprint):
        return None
    return ExtractionCounts.from_json(version.metadata["extracted"]) if tables.is_intact(EVENTS_TABLE, day) else None


def check_extracted_under(day: str, tables: Tables, attributes: AttributesFrom, allowlist: tuple[str, ...]) -> None:
    """Raises `NotExtracted` if the day's `posthog_events` were extracted under other settings, and so may lack events that are
    on the allowlist now, or have the attributes of another CIO_ATTRIBUTES_FROM. Raises `NotMaterialized`."""
    stored = tables.version(EVENTS_TABLE, day).metadata
    had = stored.get(ALLOWLIST)
    has_events = had is not None and (not had or (bool(allowlist) and set(allowlist) <= set(had)))
    if stored.get(ATTRIBUTES_FROM) != attributes or not has_events:
        setting = "CIO_EVENT_ALLOWLIST" if stored.get(ATTRIBUTES_FROM) == attributes else "CIO_ATTRIBUTES_FROM"
        raise NotExtracted(
            f"posthog_events of {day} were extracted under another {setting}: materialize posthog_events for {day} again, or"
            " run the job customerio_sync."
        )


def extract_day(
    tables: Tables,
    day: str,
    events: EventStream,
    *,
    start: datetime,
    attributes: AttributesFrom,
    now: datetime,
    workers: int = 1,
    allowlist: tuple[str, ...] = (),
) -> ExtractionCounts:
    """Writes a day's `posthog_events`. `start` is the day's; `now` is when the extraction began: R20 goes by the events' age
    then; allowlist: the names of events that the stream was asked for, or nothing for all.

    Raises `NotExtracted` if a row that came is neither in the table nor a duplicate.
    """
    reaches_back = dropped_set.reaches_back(start, now)
    use_person: UsePersonProperties = "never"
    if attributes == "person":
        use_person = "always"
    elif attributes == "auto" and reaches_back:
        use_person = "if dropped in day"
    settings = {ATTRIBUTES_FROM: attributes, ALLOWLIST: list(allowlist)}
    counts = _extract(
        tables,
        EVENTS_TABLE,
        day,
        events,
        use_person=use_person,
        now=now,
        workers=workers,
        restores=reaches_back,
        settings=settings,
    )
    return replace(counts, may_lack_set=reaches_back)


def extract_history(
    tables: Tables, partition: str, events: EventStream, *, attributes: AttributesFrom, now: datetime, workers: int = 1
) -> ExtractionCounts:
    """Writes the `identity_history` as `extract_day` does a day; here each event is considered alone (R18)."""
    use_person: UsePersonProperties = "never"
    if attributes != "set":
        use_person = "always" if attributes == "person" else "if dropped in history"
    return _extract(tables, HISTORY_TABLE, partition, events, use_person=use_person, now=now, workers=workers, restores=True)


def _extract(
    tables: Tables,
    table: str,
    partition: str,
    events: EventStream,
    *,
    use_person: UsePersonProperties,
    now: datetime,
    workers: int,
    restores: bool,
    settings: Mapping[str, Any] | None = None,
) -> ExtractionCounts:
    """Writes a partition of a table, each of the events once, and these settings with it.

    restores: whether PostHog may have dropped what an earlier extraction still had, so that it is looked up there.
    """
    summary, counts = StreamSummary(), ExtractionCounts()
    with temporary_folder() as folder, tables.replace(partition, {table: KEPT_EVENTS}) as new:
        new.metadata = {READ_BY: code_hash(), **(settings or {})}
        earlier = _events_of_last_extraction(tables, table, partition, summary) if restores else iter(())
        rows = _spilled(events, summary, use_person, workers, earlier)
        shards = shuffle(rows, "distinct_id", SPILLED, folder, uncounted="earlier")
        pa.default_memory_pool().release_unused()  # the workers need memory now
        context = WriteContext(new.writer, table, use_person, now, summary)
        work = ((context, number, shard) for number, shard in enumerate(shards))
        with closing(map_shards(write_shard, work, len(shards), workers, f"{partition}: events written")) as results:
            for written, of_shard in results:
                new.shards.append(written)
                counts.add(of_shard)
        new.metadata["duplicates"] = counts.duplicates.total()
        accounted_for = counts.rows_written + counts.duplicates.total() + counts.not_needed
        if not summary.rows_read == counts.rows_read == accounted_for:
            raise NotExtracted(
                f"Of {partition}, {summary.rows_read:,} events were read, but {accounted_for:,} are left: is"
                " something removing temporary files, or is the disk full? Run it again."
            )
        if events.fingerprint is not None and not restores:
            new.metadata |= {"fingerprint": _with_reading_code(events.fingerprint), "extracted": vars(counts)}
    return counts


def _with_reading_code(fingerprint: str) -> str:
    return f"{fingerprint} {_reading_code_hash()}"


def _reading_code_hash() -> str:
    """Returns the hash of the code that reads and keeps events. When it changes, they are read again."""
    return f"{hash_of_code(*READING)} {pa.__version__}"


def _spilled(
    events: EventStream, summary: StreamSummary, use_person: UsePersonProperties, workers: int, earlier: Iterator[pa.Table]
) -> Iterator[pa.Table]:
    """Returns the events and those of an earlier extraction, as `SPILLED`; fills the summary."""
    for frame in events.frames:
        rows = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, EVENT_SCHEMA, preserve_index=False)
        if NEEDED not in rows.column_names:
            rows = rows.append_column(NEEDED, constant(len(rows), True))
        summary.rows_read += len(rows)
        if summary.rows_read > SHARDS_IN_THIS_PROCESS * SHARD_ROWS:
            load_workers(workers)
        if use_person == "if dropped in day":
            summary.first = dropped_set.first_with_set(rows.filter(rows[NEEDED]), summary.first)
        if use_person == "never":
            rows = dropped_set.with_person_properties(rows, False)
        yield _marked(rows, False)
    for rows in earlier:
        yield _marked(rows, True)


def _events_of_last_extraction(tables: Tables, table: str, partition: str, summary: StreamSummary) -> Iterator[pa.Table]:
    """Yields the events of the partition's version so far, if there is one."""
    if tables.find_version(table, partition) is None:
        return
    for rows in tables.read_arrow(table, partition, list(KNOWN)):
        summary.always_used_person = summary.always_used_person or dropped_set.always_used_person(rows)
        summary.any_had_set = summary.any_had_set or any_has_set(rows["properties"])
        known = restored_set.with_only_set_properties(rows)
        created = pa.nulls(len(rows), EVENT_SCHEMA.field("created_at").type)
        all_columns = known.append_column("created_at", created).select(EVENT_SCHEMA.names)
        yield all_columns.append_column(NEEDED, constant(len(known), True))


def _marked(rows: pa.Table, earlier: bool) -> pa.Table:
    return rows.append_column("earlier", constant(len(rows), earlier)).cast(SPILLED)
