"""Writes a shard of an extraction's table: each event once, sorted by person, with the properties that are to be used (R20)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.pipeline.events import with_parsed_columns
from cio_pipeline.posthog.source import HISTORY_EVENTS, NEEDED, count_duplicates, without_duplicates
from cio_pipeline.rules import dropped_set, restored_set
from cio_pipeline.rules.columns import constant
from cio_pipeline.rules.set_properties import has_attributes
from cio_pipeline.tables.shuffle import Shard
from cio_pipeline.tables.versions import ShardWriter, WrittenShard

BY_PERSON = [(name, "ascending") for name in ("distinct_id", "timestamp", "uuid", "event")]

UsePersonProperties = Literal["never", "always", "if dropped in day", "if dropped in history"]
"""For which events the person's properties are used instead of `$set` (R20)."""


@dataclass
class ExtractionCounts:
    """Counts of what an extraction has read and written."""

    rows_read: int = 0
    rows_written: int = 0
    shards: int = 0
    not_needed: int = 0
    """Events that are not on the allowlist, and that R1 does not need either (R3)."""
    duplicates: Counter[str] = field(default_factory=Counter)
    """Rows that were left out, by reason."""
    set_restored: int = 0
    """Events with a `$set` that PostHog has dropped since an earlier extraction."""
    used_person: int = 0
    """Events that use the person's properties."""
    lacked_person: int = 0
    """Events that should use them, but the source has none."""
    identity_events: int = 0
    """`$identify` and `$set` events."""
    has_attributes: bool = False
    """Whether any event has an attribute."""
    may_lack_set: bool = False
    """Whether the window is so old that PostHog may have dropped a `$set` in it."""

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
class StreamSummary:
    """What is known only once all of an extraction's events are spilled. R20 needs it to tell which have lost their `$set`.

    rows_read; first: the first event that has a `$set` now; always_used_person, any_had_set: whether the earlier extraction
    used the person's properties even for events with a `$set`, and whether any event had one.
    """

    rows_read: int = 0
    first: dropped_set.EventPosition | None = None
    always_used_person: bool = False
    any_had_set: bool = False


@dataclass(frozen=True)
class WriteContext:
    """What all shards of an extraction need in order to be written."""

    writer: ShardWriter
    table: str
    use_person: UsePersonProperties
    now: datetime
    summary: StreamSummary


def write_shard(context: WriteContext, number: int, shard: Shard) -> tuple[WrittenShard, ExtractionCounts]:
    """Writes the events of a shard, each once and by distinct_id, with the properties that are to be used."""
    rows, earlier = _parted(shard.read())
    counts = ExtractionCounts(rows_read=len(rows), shards=1)
    events, counts.duplicates = deduplicate(rows)
    del rows
    seen_before = used_person = constant(len(events), False)
    needed = events[NEEDED]
    if len(earlier):
        events, seen_before, used_person, counts.set_restored = restored_set.with_restored_set(events, earlier)
        needed = pc.or_(needed, pc.and_(seen_before, pc.or_(used_person, restored_set.has_set(events))))
    counts.not_needed = len(events) - (pc.sum(needed).as_py() or 0)
    if counts.not_needed:
        events, seen_before, used_person = (one.filter(needed) for one in (events.combine_chunks(), seen_before, used_person))
    events = events.drop_columns(NEEDED)
    if context.summary.always_used_person:  # that was CIO_ATTRIBUTES_FROM=person, not a `$set` that had been dropped
        used_person = constant(len(events), False)
    had_set = pc.and_not(seen_before, used_person) if context.summary.any_had_set else constant(len(events), False)
    uses_person = _uses_person(context, events, used_person, had_set)
    events = dropped_set.with_person_properties(events, uses_person)
    counts.rows_written = len(events)
    counts.used_person = len(events) - events["person_properties"].null_count
    counts.lacked_person = (pc.sum(uses_person).as_py() or 0) - counts.used_person
    counts.identity_events = pc.sum(pc.is_in(events["event"], pa.array(HISTORY_EVENTS))).as_py() or 0
    counts.has_attributes = has_attributes(events)
    return context.writer.write(number, {context.table: with_parsed_columns(events)}), counts


def _parted(spilled: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Returns the events that were read and those of the last extraction."""
    is_earlier, rows = spilled["earlier"], spilled.drop_columns("earlier")
    if not pc.any(is_earlier).as_py():
        return rows, rows.slice(0, 0)
    return rows.filter(pc.invert(is_earlier)), rows.filter(is_earlier).drop_columns(NEEDED)


def deduplicate(rows: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """Returns each event once, sorted by `BY_PERSON`, and how many rows that leaves out, by reason.

    Only the rows whose uuid occurs more than once are compared (`source.without_duplicates`).
    """
    left_out: Counter[str] = Counter()
    if len(pc.unique(rows["uuid"])) < len(rows):
        counts = pc.value_counts(rows["uuid"])
        repeated = pc.is_in(rows["uuid"], counts.field("values").filter(pc.greater(counts.field("counts"), 1)))
        several = rows.filter(repeated).to_pandas()
        left_out = count_duplicates(several)
        again = pa.Table.from_pandas(without_duplicates(several), rows.schema, preserve_index=False)
        rows = pa.concat_tables([rows.filter(pc.invert(repeated)), again])
    return rows.take(pc.sort_indices(rows, BY_PERSON)).combine_chunks(), left_out


def _uses_person(
    context: WriteContext, events: pa.Table, used_person: pa.ChunkedArray, had_set: pa.ChunkedArray
) -> pa.ChunkedArray:
    """Returns which events use the person's properties (bool). The last two are what an earlier extraction decided."""
    if context.use_person == "if dropped in day":
        return dropped_set.dropped_in_day(events, used_person, had_set, context.summary.first, context.now)
    if context.use_person == "if dropped in history":
        return dropped_set.dropped_in_history(events, context.now)
    return constant(len(events), context.use_person == "always")
