"""PostHog's events into a table: each once, with what an earlier extraction knew of it (R20), and none lost on the way."""

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
from cio_pipeline.posthog.source import EVENT_SCHEMA, HISTORY_EVENTS, NotExtracted, Window, duplicates, in_order
from cio_pipeline.rules import dropped_set
from cio_pipeline.rules.dropped_set import AttributesFrom
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.shuffle import SHARD_ROWS, Shard, shuffle
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import ShardWriter, WrittenShard
from cio_pipeline.worker_pool import FEW, load_workers, map_shards

KNOWN = (*dropped_set.IDENTITY, "timestamp", "properties", "person_properties")
SPILLED = pa.schema([*EVENT_SCHEMA, ("earlier", pa.bool_())])
"""`earlier`: whether the row is what an earlier extraction kept."""

BY_PERSON = [(name, "ascending") for name in ("distinct_id", "timestamp", "uuid", "event")]
DAY, HISTORY = "posthog_events", "identity_history"

SetDropped = Literal["none", "all", "of a day", "of the history"]
"""Which events have lost their `$set`, so that the person's properties are taken (R20)."""


@dataclass
class Extracted:
    """What was kept of a window: rows that came and that stand in the table, duplicates by reason, and how R20 took the events.

    remembered: events whose `$set` only an earlier extraction had; from_person: those that give the person's properties;
    without: those that should, but have none; identity_events: the `$identify` and `$set` events; gives: whether any gives an
    attribute;
    is_old: whether PostHog may have dropped any `$set` of the window.
    """

    read: int = 0
    rows: int = 0
    shards: int = 0
    duplicates: Counter[str] = field(default_factory=Counter)
    remembered: int = 0
    from_person: int = 0
    without: int = 0
    identity_events: int = 0
    gives: bool = False
    is_old: bool = False

    def add(self, other: Extracted) -> None:
        """Counts what was kept of another shard, too."""
        for one in fields(self):
            setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        self.gives, self.is_old = bool(self.gives), bool(self.is_old)

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> Extracted:
        """What the table's version keeps of it."""
        return cls(**{**kept, "duplicates": Counter(kept["duplicates"])})


@dataclass
class Overview:
    """What only the events of a whole window show, once all of them are spilled: R20 tells by it which have lost their `$set`.

    first: the place of the first that has a `$set`, as PostHog gives them now; took_all, had_set: whether the earlier
    extraction took the person's properties whatever `$set` said, and whether any event had one.
    """

    read: int = 0
    first: dropped_set.EventPosition | None = None
    took_all: bool = False
    had_set: bool = False


@dataclass(frozen=True)
class WriteContext:
    """How the shards of a window are written, the same for all of them."""

    writer: ShardWriter
    table: str
    dropped: SetDropped
    now: datetime
    overview: Overview


def extracted_before(tables: Tables, day: str, fingerprint: str | None) -> Extracted | None:
    """What was kept of a day whose `posthog_events` were made of just this (`Window.fingerprint`) by this code, and are whole.

    None where that is not certain: then they are to be extracted.
    """
    version = tables.find_version(DAY, day)
    if fingerprint is None or version is None or version.metadata.get("fingerprint") != _with_code(fingerprint):
        return None
    return Extracted.from_json(version.metadata["extracted"]) if tables.is_intact(DAY, day) else None


def extract_day(
    tables: Tables, day: str, start: datetime, window: Window, attributes: AttributesFrom, now: datetime, workers: int = 1
) -> Extracted:
    """Writes a day's `posthog_events`. `now` is when the extraction began: R20 goes by the events' age then.

    Raises `NotExtracted` where a row that came is neither in the table nor a duplicate.
    """
    reaches_back = dropped_set.reaches_back(start, now)
    dropped: SetDropped = "all" if attributes == "person" else "of a day" if attributes == "auto" and reaches_back else "none"
    kept = _extract(tables, DAY, day, window, dropped, now, workers, remembers=reaches_back)
    return replace(kept, is_old=reaches_back)


def extract_history(
    tables: Tables, partition: str, window: Window, attributes: AttributesFrom, now: datetime, workers: int = 1
) -> Extracted:
    """Writes the `identity_history` as `extract_day` does a day; here each event is looked at by itself (R18)."""
    dropped: SetDropped = "all" if attributes == "person" else "of the history" if attributes == "auto" else "none"
    return _extract(tables, HISTORY, partition, window, dropped, now, workers, remembers=True)


def _extract(
    tables: Tables,
    table: str,
    partition: str,
    window: Window,
    dropped: SetDropped,
    now: datetime,
    workers: int,
    *,
    remembers: bool,
) -> Extracted:
    """remembers: whether PostHog may have dropped by now what an earlier extraction still had."""
    overview, kept = Overview(), Extracted()
    with temporary_folder() as folder, tables.replace(partition, {table: KEPT_EVENTS}) as new:
        new.metadata = {READ_BY: code_hash()}
        earlier = _kept_before(tables, table, partition, overview) if remembers else iter(())
        rows = _spilled(window, overview, dropped, workers, earlier)
        shards = shuffle(rows, "distinct_id", SPILLED, folder, uncounted="earlier")
        context = WriteContext(new.writer, table, dropped, now, overview)
        work = ((context, number, shard) for number, shard in enumerate(shards))
        with closing(map_shards(_write_shard, work, len(shards), workers, f"{partition}: events written")) as results:
            for written, of_shard in results:
                new.shards.append(written)
                kept.add(of_shard)
        new.metadata["duplicates"] = kept.duplicates.total()
        if kept.read != overview.read or kept.rows + kept.duplicates.total() != kept.read:
            raise NotExtracted(
                f"Of {partition}, {overview.read:,} events were read, but {kept.rows + kept.duplicates.total():,} are left: is"
                " something removing temporary files, or is the disk full? Run it again."
            )
        if window.fingerprint is not None and not remembers:
            new.metadata |= {"fingerprint": _with_code(window.fingerprint), "extracted": vars(kept)}
    return kept


def _with_code(fingerprint: str) -> str:
    return f"{fingerprint} {_code_hash()}"


def _code_hash() -> str:
    """What stands for the code that reads and keeps events: other code reads them again."""
    return f"{hash_of_code('posthog', 'tables', 'rules', 'extraction', 'events', 'json_text')} {pa.__version__}"


def _spilled(
    window: Window, overview: Overview, dropped: SetDropped, workers: int, earlier: Iterator[pa.Table]
) -> Iterator[pa.Table]:
    """The window's events and those kept before, as `SPILLED` has them; `overview` takes note of them."""
    for frame in window.frames:
        rows = frame if isinstance(frame, pa.Table) else pa.Table.from_pandas(frame, EVENT_SCHEMA, preserve_index=False)
        overview.read += len(rows)
        if overview.read > FEW * SHARD_ROWS:
            load_workers(workers)
        if dropped == "of a day":
            overview.first = dropped_set.first_with_set(rows, overview.first)
        if dropped == "none":
            rows = dropped_set.with_person_properties(rows, False)
        yield _marked(rows, False)
    for rows in earlier:
        yield _marked(rows, True)


def _kept_before(tables: Tables, table: str, partition: str, overview: Overview) -> Iterator[pa.Table]:
    """The events of the partition's version so far, if there is one."""
    if tables.find_version(table, partition) is None:
        return
    for rows in tables.read_arrow(table, partition, list(KNOWN)):
        overview.took_all = overview.took_all or dropped_set.always_used_person(rows)
        overview.had_set = overview.had_set or dropped_set.any_has_set(rows["properties"])
        known = dropped_set.with_only_set_properties(rows)
        created = pa.nulls(len(rows), EVENT_SCHEMA.field("created_at").type)
        yield known.append_column("created_at", created).select(EVENT_SCHEMA.names)


def _marked(rows: pa.Table, earlier: bool) -> pa.Table:
    return rows.append_column("earlier", pa.array(np.full(len(rows), earlier))).cast(SPILLED)


def _write_shard(context: WriteContext, number: int, shard: Shard) -> tuple[WrittenShard, Extracted]:
    """Writes a shard's events, each once and by person, with the properties that are to be taken."""
    rows, earlier = _parted(shard.read())
    kept = Extracted(read=len(rows), shards=1)
    events, kept.duplicates = once(rows)
    del rows
    none = pa.array(np.full(len(events), False))
    took = was_there = none
    if len(earlier):
        events, was_there, took, kept.remembered = dropped_set.with_restored_set(events, earlier)
        took = none if context.overview.took_all else took
    stays = pc.and_not(was_there, took) if context.overview.had_set else none
    events = _with_person_properties(context, events, took, stays, kept)
    kept.rows = len(events)
    return context.writer.write(number, {context.table: with_parsed_columns(events)}), kept


def _parted(spilled: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The events that came and those kept before."""
    is_earlier, rows = spilled["earlier"], spilled.drop_columns("earlier")
    if not pc.any(is_earlier).as_py():
        return rows, rows.slice(0, 0)
    return rows.filter(pc.invert(is_earlier)), rows.filter(is_earlier)


def once(rows: pa.Table) -> tuple[pa.Table, Counter[str]]:
    """Each event once, in the order and by the rules of `source.in_order`, and how many rows that leaves out, by reason.

    Only the rows whose uuid comes more than once are compared.
    """
    left_out: Counter[str] = Counter()
    if len(pc.unique(rows["uuid"])) < len(rows):
        counts = pc.value_counts(rows["uuid"])
        repeated = pc.is_in(rows["uuid"], counts.field("values").filter(pc.greater(counts.field("counts"), 1)))
        several = rows.filter(repeated).to_pandas()
        left_out = duplicates(several)
        again = pa.Table.from_pandas(in_order(several), rows.schema, preserve_index=False)
        rows = pa.concat_tables([rows.filter(pc.invert(repeated)), again])
    return rows.take(pc.sort_indices(rows, BY_PERSON)).combine_chunks(), left_out


def _with_person_properties(
    context: WriteContext, events: pa.Table, took: pa.ChunkedArray, stays: pa.ChunkedArray, kept: Extracted
) -> pa.Table:
    """The events with the person's properties where they are to be taken, and null elsewhere."""
    dropped: pa.ChunkedArray | bool
    if context.dropped == "of a day":
        dropped = dropped_set.dropped_in_day(events, took, stays, context.overview.first, context.now)
    elif context.dropped == "of the history":
        dropped = dropped_set.dropped_in_history(events, context.now)
    else:
        dropped = context.dropped == "all"
    taken = dropped_set.with_person_properties(events, dropped)
    kept.from_person = len(taken) - taken["person_properties"].null_count
    kept.without = (len(events) * dropped if isinstance(dropped, bool) else pc.sum(dropped).as_py() or 0) - kept.from_person
    kept.identity_events = pc.sum(pc.is_in(events["event"], pa.array(HISTORY_EVENTS))).as_py() or 0
    kept.gives = dropped_set.has_attributes(taken)
    return taken
