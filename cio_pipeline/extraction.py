"""PostHog's events into a table: each once, with what an earlier extraction knew of it (R20), and none lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import chain, islice

import pandas as pd
import pyarrow as pa

from cio_pipeline.posthog import dropped_set as r20
from cio_pipeline.posthog.source import (
    EVENT_SCHEMA,
    HISTORY_EVENTS,
    AttributesFrom,
    NotExtracted,
    Window,
    duplicates,
    in_order,
)
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.shuffle import Writer
from cio_pipeline.tables.tables import Tables, shards_for

KNOWN = pa.schema([EVENT_SCHEMA.field(name) for name in (*r20.IDENTITY, "timestamp", "properties", "person_properties")])
WHOLE = pa.schema([*EVENT_SCHEMA, ("took", pa.bool_()), ("stays", pa.bool_())])
DAY, HISTORY = "posthog_events", "identity_history"

Settle = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass
class Extracted:
    """What was kept of a window: rows that came and that stand in the table, duplicates by reason, and how R20 took the events.

    remembered: events whose `$set` only an earlier extraction had; from_person: those that give the person's properties;
    without: those that should, but have none; teaching: `$identify` and `$set` events; gives: whether any gives an attribute.
    """

    read: int = 0
    rows: int = 0
    shards: int = 0
    duplicates: Counter[str] = field(default_factory=Counter)
    remembered: int = 0
    from_person: int = 0
    without: int = 0
    teaching: int = 0
    gives: bool = False


def extract_day(
    tables: Tables, day: str, start: datetime, found: Window, attributes: AttributesFrom, now: datetime
) -> Extracted:
    """Writes a day's `posthog_events`. `now` is when the extraction began: R20 goes by the events' age then.

    Raises `NotExtracted` where a row that came is neither in the table nor a duplicate.
    """
    with temporary_folder() as folder:
        read = _Extraction(tables, Tables(str(folder), temporary=True), DAY, day, found)
        if attributes == "auto" and r20.reaches_back(start, now):
            read.keep_looked_at_as_a_whole(now)
        else:
            read.keep(lambda events: read.settled(events, attributes == "person"))
    return read.kept


def extract_history(tables: Tables, partition: str, found: Window, attributes: AttributesFrom, now: datetime) -> Extracted:
    """Writes the `identity_history` as `extract_day` does a day; here each event is looked at by itself (R18)."""
    with temporary_folder() as folder:
        read = _Extraction(tables, Tables(str(folder), temporary=True), HISTORY, partition, found)
        if attributes == "auto":
            read.keep(lambda events: read.settled(events, r20.lost_of_the_history(events, now)))
        else:
            read.keep(lambda events: read.settled(events, attributes == "person"))
    return read.kept


class _Extraction:
    """One window on its way into a table's partition; `spilled` holds what does not fit in memory."""

    def __init__(self, tables: Tables, spilled: Tables, table: str, partition: str, found: Window) -> None:
        self._tables, self._spilled, self._table, self._partition = tables, spilled, table, partition
        first = list(islice(found.frames, 1))
        self._frames = chain(first, found.frames)
        row_bytes = sum(pa.Table.from_pandas(frame, EVENT_SCHEMA).nbytes // max(1, len(frame)) for frame in first)
        self.kept = Extracted(shards=shards_for(found.expected, row_bytes))
        self._seen: list[int] = []
        self._first: r20.Moment | None = None
        self._took_all = self._had_set = False
        self._spill_known()

    def keep(self, settle: Settle) -> None:
        """Writes the partition, each shard settled by itself."""
        with self._tables.replace(self._table, self._partition, EVENT_SCHEMA, self.kept.shards) as writer:
            self._add_to(writer)
            writer.finish_each(lambda rows: settle(self._once(rows)))
        self._check()

    def keep_looked_at_as_a_whole(self, now: datetime) -> None:
        """Writes the partition after all its events were seen: what they have lost shows in the day as a whole."""
        with self._spilled.replace("whole", self._partition, WHOLE, self.kept.shards) as writer:
            self._add_to(writer)
            writer.finish_each(self._looked_at)
        with self._tables.replace(self._table, self._partition, EVENT_SCHEMA, self.kept.shards) as writer:
            for shard in self._spilled.read("whole", self._partition):
                writer.add(self.settled(shard, r20.lost_of_a_day(shard, self._first, now)), by="distinct_id")
        self._check()

    def settled(self, events: pd.DataFrame, lost: list[bool] | bool) -> pd.DataFrame:
        """The events with the person's properties where they are to be taken, and null elsewhere."""
        settled = r20.taking(events, lost)
        taken = int(settled["person_properties"].notna().sum())
        self.kept.from_person += taken
        self.kept.without += (len(events) * lost if isinstance(lost, bool) else sum(lost)) - taken
        self.kept.teaching += int(events["event"].isin(HISTORY_EVENTS).sum())
        self.kept.gives = self.kept.gives or r20.gives_any(settled)
        return settled

    def _spill_known(self) -> None:
        """The events of an earlier version of the partition, in shards that have the same people as the new ones."""
        with self._spilled.replace("known", self._partition, KNOWN, self.kept.shards) as writer:
            if self._tables.current(self._table, self._partition) is not None:
                for shard in self._tables.read(self._table, self._partition, KNOWN.names):
                    self._took_all = self._took_all or r20.took_all(shard)
                    self._had_set = self._had_set or r20.any_has_set(shard)
                    writer.add(r20.known(shard), by="distinct_id")

    def _known_of(self, events: pd.DataFrame) -> Iterator[pd.DataFrame]:
        yield KNOWN.empty_table().to_pandas()
        yield from self._spilled.rows("known", self._partition, "distinct_id", events["distinct_id"].unique().tolist())

    def _add_to(self, writer: Writer) -> None:
        for frame in self._frames:
            self.kept.read += len(frame)
            writer.add(frame.assign(took=False, stays=False), by="distinct_id")

    def _looked_at(self, rows: pd.DataFrame) -> pd.DataFrame:
        """What `_once` gives; the first of all events with a `$set` is noted before any is remembered."""
        self._first = min((moment for moment in (self._first, r20.first_with_set(rows)) if moment), default=None)
        return self._once(rows)

    def _once(self, rows: pd.DataFrame) -> pd.DataFrame:
        """A shard's events, each once. Raises `NotExtracted` where the last shard is read and rows are missing."""
        self._seen.append(len(rows))
        if len(self._seen) == self.kept.shards and sum(self._seen) != self.kept.read:
            raise self._lost(sum(self._seen))
        self.kept.duplicates += duplicates(rows)
        events, remembered = r20.remembered(in_order(rows), pd.concat(self._known_of(rows), ignore_index=True))
        self.kept.remembered += remembered
        took = events["took"] & (not self._took_all)
        return events.assign(took=took, stays=events["was_there"] & ~took & self._had_set)

    def _check(self) -> None:
        self.kept.rows = self._tables.version(self._table, self._partition).rows
        if self.kept.rows + self.kept.duplicates.total() != self.kept.read:
            raise self._lost(self.kept.rows + self.kept.duplicates.total())

    def _lost(self, rows: int) -> NotExtracted:
        return NotExtracted(
            f"Of {self._partition}, {self.kept.read:,} events were read, but {rows:,} are left: is something removing"
            " temporary files, or is the disk full? Run it again."
        )
