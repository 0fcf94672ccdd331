"""Writes the events of a day to `posthog_events`: each once, by distinct_id and time.

A `$set` that PostHog has dropped since the last extraction is copied from the table of that time (R20). An extraction fails
unless the rows that were read are the rows that were written, plus duplicates.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.events import KEPT_EVENTS, READ_BY, code_hash, hash_of_code, with_parsed_columns
from cio_pipeline.posthog.source import EVENT_SCHEMA, HISTORY_EVENTS, EventStream, NotExtracted, duplicates, without_duplicates
from cio_pipeline.rules import dropped_set, restored_set
from cio_pipeline.rules.dropped_set import AttributesFrom
from cio_pipeline.rules.set_properties import any_has_set, has_attributes
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.shuffle import SHARD_ROWS, Shard, shuffle
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import ShardWriter, WrittenShard
from cio_pipeline.worker_pool import SHARDS_IN_THIS_PROCESS, load_workers, map_shards

KNOWN = (*restored_set.IDENTITY, "timestamp", "properties", "person_properties")
SPILLED = pa.schema([*EVENT_SCHEMA, ("earlier", pa.bool_())])
"""`earlier`: whether the row is what an earlier extraction counts."""

BY_PERSON = [(name, "ascending") for name in ("distinct_id", "timestamp", "uuid", "event")]
DAY, HISTORY = "posthog_events", "identity_history"

UsePersonProperties = Literal["never", "always", "if dropped in day", "if dropped in history"]
"""For which events the person's properties are used instead of `$set` (R20)."""


@dataclass
class ExtractionCounts:
    """Counts of what an extraction has read and written.

    rows_read, rows_written, shards; duplicates: rows left out, by reason; set_restored: events with a `$set` that PostHog has
    dropped since an earlier extraction; used_person: events that use the person's properties; lacked_person: events that
    should, but the source has none; identity_events: `$identify` and `$set` events; has_attributes: whether any event has an
    attribute; may_lack_set: whether the window is so old that PostHog may have dropped a `$set` in it.
    """

    rows_read: int = 0
    rows_written: int = 0
    shards: int = 0
    duplicates: Counter[str] = field(default_factory=Counter)
    set_restored: int = 0
    used_person: int = 0
    lacked_person: int = 0
    identity_events: int = 0
    has_attributes: bool = False
    may_lack_set: bool = False

    def add(self, other: ExtractionCounts) -> None:
        """Adds the counts of another shard."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        self.has_attributes, self.may_lack_set = bool(self.has_attributes), bool(self.may_lack_set)

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> ExtractionCounts:
        """Returns the counts that were stored with the table's version."""
        return cls(**{**stored, "duplicates": Counter(stored["duplicates"])})


@dataclass
class Overview:
    """What is known only once all of the window's events are spilled. R20 needs it to tell which have lost their `$set`.

    rows_read; first: the first event that has a `$set` now; always_used_person, any_had_set: whether the earlier extraction
    used the person's properties even for events with a `$set`, and whether any event had one.
    """

    rows_read: int = 0
    first: dropped_set.EventPosition | None = None
    always_used_person: bool = False
    any_had_set: bool = False


@dataclass(frozen=True)
class WriteContext:
    """What all shards of a window need in order to be written."""

    writer: ShardWriter
    table: str
    use_person: UsePersonProperties
    now: datetime
    overview: Overview


def reusable_extraction(tables: Tables, day: str, fingerprint: str | None) -> ExtractionCounts | None:
    """Returns the counts of the last extraction if its table can stay: the same events (`EventStream.fingerprint`), the same
    code, and intact files. Otherwise, or if that is unknown, returns None.
    """
    version = tables.find_version(DAY, day)
    if fingerprint is None or version is None or version.metadata.get("fingerprint") != _with_code(fingerprint):
        return None
    return ExtractionCounts.from_json(version.metadata["extracted"]) if tables.is_intact(DAY, day) else None


def extract_day(
    tables: Tables, day: str, start: datetime, window: EventStream, attributes: AttributesFrom, now: datetime, workers: int = 1
) -> ExtractionCounts:
    """Writes a day's `posthog_events`. `now` is when the extraction began: R20 goes by the events' age then.

    Raises `NotExtracted` if a row that came is neither in the table nor a duplicate.
    """
    reaches_back = dropped_set.reaches_back(start, now)
    use_person: UsePersonProperties = "never"
    if attributes == "person":
        use_person = "always"
    elif attributes == "auto" and reaches_back:
        use_person = "if dropped in day"
    counts = _extract(tables, DAY, day, window, use_person, now, workers, restores=reaches_back)
    return replace(counts, may_lack_set=reaches_back)


def extract_history(
    tables: Tables, partition: str, window: EventStream, attributes: AttributesFrom, now: datetime, workers: int = 1
) -> ExtractionCounts:
    """Writes the `identity_history` as `extract_day` does a day; here each event is considered alone (R18)."""
    use_person: UsePersonProperties = "never"
    if attributes != "set":
        use_person = "always" if attributes == "person" else "if dropped in history"
    return _extract(tables, HISTORY, partition, window, use_person, now, workers, restores=True)


def _extract(
    tables: Tables,
    table: str,
    partition: str,
    window: EventStream,
    use_person: UsePersonProperties,
    now: datetime,
    workers: int,
    *,
    restores: bool,
) -> ExtractionCounts:
    """restores: whether PostHog may have dropped what an earlier extraction still had, so that it is looked up there."""
    overview, counts = Overview(), ExtractionCounts()
    with temporary_folder() as folder, tables.replace(partition, {table: KEPT_EVENTS}) as new:
        new.metadata = {READ_BY: code_hash()}
        earlier = _kept_before(tables, table, partition, overview) if restores else iter(())
        rows = _spilled(window, overview, use_person, workers, earlier)
        shards = shuffle(rows, "distinct_id", SPILLED, folder, uncounted="earlier")
        context = WriteContext(new.writer, table, use_person, now, overview)
        work = ((context, number, shard) for number, shard in enumerate(shards))
        with closing(map_shards(_write_shard, work, len(shards), workers, f"{partition}: events written")) as results:
            for written, of_shard in results:
                new.shards.append(written)
                counts.add(of_shard)
        new.metadata["duplicates"] = counts.duplicates.total()
        accounted_for = counts.rows_written + counts.duplicates.total()
        if not overview.rows_read == counts.rows_read == accounted_for:
            raise NotExtracted(
                f"Of {partition}, {overview.rows_read:,} events were read, but {accounted_for:,} are left: is"
                " something removing temporary files, or is the disk full? Run it again."
            )
        if window.fingerprint is not None and not restores:
            new.metadata |= {"fingerprint": _with_code(window.fingerprint), "extracted": vars(counts)}
    return counts


def _with_code(fingerprint: str) -> str:
    return f"{fingerprint} {_code_hash()}"


def _code_hash() -> str:
    """The hash of the code that reads and keeps events. When it changes, they are read again."""
    return f"{hash_of_code('posthog', 'tables', 'rules', 'extraction', 'events', 'json_text')} {pa.__version__}"


def _spilled(
    window: EventStream, overview: Overview, use_person: UsePersonProperties, workers: int, earlier: Iterator[pa.Table]
) -> Iterator[pa.Table]:
    """Returns the window's events and those of an earlier extraction, as `SPILLED`; fills the overview."""
    for frame in window.frames:
        rows = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, EVENT_SCHEMA, preserve_index=False)
        overview.rows_read += len(rows)
        if overview.rows_read > SHARDS_IN_THIS_PROCESS * SHARD_ROWS:
            load_workers(workers)
        if use_person == "if dropped in day":
            overview.first = dropped_set.first_with_set(rows, overview.first)
        if use_person == "never":
            rows = dropped_set.with_person_properties(rows, False)
        yield _marked(rows, False)
    for rows in earlier:
        yield _marked(rows, True)


def _kept_before(tables: Tables, table: str, partition: str, overview: Overview) -> Iterator[pa.Table]:
    """The events of the partition's version so far, if there is one."""
    if tables.find_version(table, partition) is None:
        return
    for rows in tables.read_arrow(table, partition, list(KNOWN)):
        overview.always_used_person = overview.always_used_person or dropped_set.always_used_person(rows)
        overview.any_had_set = overview.any_had_set or any_has_set(rows["properties"])
        known = restored_set.with_only_set_properties(rows)
        created = pa.nulls(len(rows), EVENT_SCHEMA.field("created_at").type)
        yield known.append_column("created_at", created).select(EVENT_SCHEMA.names)


def _marked(rows: pa.Table, earlier: bool) -> pa.Table:
    return rows.append_column("earlier", _constant(rows, earlier)).cast(SPILLED)


def _write_shard(context: WriteContext, number: int, shard: Shard) -> tuple[WrittenShard, ExtractionCounts]:
    """Writes the events of a shard, each once and by distinct_id, with the properties that are to be used."""
    rows, earlier = _parted(shard.read())
    counts = ExtractionCounts(rows_read=len(rows), shards=1)
    events, counts.duplicates = once(rows)
    del rows
    seen_before = used_person = _constant(events, False)
    if len(earlier):
        events, seen_before, used_person, counts.set_restored = restored_set.with_restored_set(events, earlier)
    if context.overview.always_used_person:  # that was CIO_ATTRIBUTES_FROM=person, not a `$set` that had been dropped
        used_person = _constant(events, False)
    had_set = pc.and_not(seen_before, used_person) if context.overview.any_had_set else _constant(events, False)
    uses_person = _uses_person(context, events, used_person, had_set)
    events = dropped_set.with_person_properties(events, uses_person)
    counts.rows_written = len(events)
    counts.used_person = len(events) - events["person_properties"].null_count
    counts.lacked_person = (pc.sum(uses_person).as_py() or 0) - counts.used_person
    counts.identity_events = pc.sum(pc.is_in(events["event"], pa.array(HISTORY_EVENTS))).as_py() or 0
    counts.has_attributes = has_attributes(events)
    return context.writer.write(number, {context.table: with_parsed_columns(events)}), counts


def _parted(spilled: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The events that came and those kept before."""
    is_earlier, rows = spilled["earlier"], spilled.drop_columns("earlier")
    if not pc.any(is_earlier).as_py():
        return rows, rows.slice(0, 0)
    return rows.filter(pc.invert(is_earlier)), rows.filter(is_earlier)


def once(rows: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """Returns each event once, sorted by `BY_PERSON`, and how many rows that leaves out, by reason.

    Only the rows whose uuid occurs more than once are compared (`source.without_duplicates`).
    """
    left_out: Counter[str] = Counter()
    if len(pc.unique(rows["uuid"])) < len(rows):
        counts = pc.value_counts(rows["uuid"])
        repeated = pc.is_in(rows["uuid"], counts.field("values").filter(pc.greater(counts.field("counts"), 1)))
        several = rows.filter(repeated).to_pandas()
        left_out = duplicates(several)
        again = pa.Table.from_pandas(without_duplicates(several), rows.schema, preserve_index=False)
        rows = pa.concat_tables([rows.filter(pc.invert(repeated)), again])
    return rows.take(pc.sort_indices(rows, BY_PERSON)).combine_chunks(), left_out


def _uses_person(
    context: WriteContext, events: pa.Table, used_person: pa.ChunkedArray, had_set: pa.ChunkedArray
) -> pa.ChunkedArray:
    """Returns which events use the person's properties (bool). The last two are what an earlier extraction decided."""
    if context.use_person == "if dropped in day":
        return dropped_set.dropped_in_day(events, used_person, had_set, context.overview.first, context.now)
    if context.use_person == "if dropped in history":
        return dropped_set.dropped_in_history(events, context.now)
    return _constant(events, context.use_person == "always")


def _constant(rows: pa.Table, value: bool) -> pa.Array:
    return pa.array(np.full(len(rows), value))
