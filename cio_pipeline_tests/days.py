"""Days that go through the product as in a run: extracted, learned, derived; and what their tables hold."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pandas as pd
import pyarrow as pa

from cio_pipeline.attribute_state import name_hash, state_time, unpack
from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.derive import derive_day
from cio_pipeline.pipeline.learn import learn_day, learn_history
from cio_pipeline.posthog.source import EVENT_SCHEMA, without_duplicates
from cio_pipeline.rules.items import identifiers
from cio_pipeline.rules.limits import MAX_ITEM_BYTES
from cio_pipeline.rules.options import Options
from cio_pipeline.state.identities import Identities
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.tables.shuffle import buckets_of
from cio_pipeline.tables.tables import Tables


class Days:
    """The tables and identities of some days, in a folder and in memory."""

    def __init__(self, folder: str, options: Options) -> None:
        self.tables, self.options = Tables(folder), options
        self.identities = Identities("sqlite://")
        self.counts_by_day: dict[str, DayCounts] = {}

    def extract(self, day: str, events: pd.DataFrame, shards: int = 1) -> None:
        """Keeps the day's events, or the history's where the day is `HISTORY_PARTITION`, in so many shards."""
        table = "identity_history" if day == HISTORY_PARTITION else "posthog_events"
        rows = pa.Table.from_pandas(
            without_duplicates(events.assign(created_at=events["timestamp"])), EVENT_SCHEMA, preserve_index=False
        )
        split = buckets_of(rows["distinct_id"], shards)
        with self.tables.replace(day, {table: EVENT_SCHEMA}) as new:
            for shard in range(shards):
                new.shards.append(new.writer.write(shard, {table: rows.filter(pa.array(split == shard))}))

    def learn(self, day: str) -> None:
        """Keeps what the day, or the history, says about people."""
        if day == HISTORY_PARTITION:
            learn_history("history", self.tables, self.identities)
        else:
            learn_day(day, "setting", self.tables, self.identities)

    def derive(self, day: str) -> DayCounts:
        """Writes the day's tables."""
        self.counts_by_day[day] = derive_day(day, self.tables, self.identities, self.options)
        return self.counts_by_day[day]

    def rows(self, table: str, day: str) -> Iterator[Any]:
        """The rows of a day's table, shard by shard."""
        for shard in self.tables.read(table, day):
            yield from shard.itertuples(index=False)

    def customers(self, day: str) -> dict[str, dict[str, tuple[Any, int]]]:
        """Key to name to (value, Unix seconds), out of operations that are just what Customer.io takes."""
        found: dict[str, dict[str, tuple[Any, int]]] = {}
        for row in self.rows("customers", day):
            operation = json.loads(row.operation)
            values, state = operation.pop("attributes"), unpack(row.state)
            times = {name: state[name_hash(name)][1] for name in values}
            newest = operation["timestamp"]
            assert state_time(newest) == max(times.values())
            upsert = {"type": "person", "action": "identify", "identifiers": identifiers(row.key), "timestamp": newest}
            assert operation == upsert
            assert (row.attributes, row.timestamp.replace(microsecond=0).timestamp()) == (len(values), newest)
            assert len(row.operation.encode()) <= MAX_ITEM_BYTES
            customer = found.setdefault(row.key, {})
            assert not customer.keys() & values.keys()
            customer.update({name: (value, times[name]) for name, value in values.items()})
        return found

    def events(self, day: str) -> list[dict[str, Any]]:
        """What goes out of each event, out of the operations; they are in time order within a customer."""
        found = []
        last: dict[str, tuple[Any, ...]] = {}
        for row in self.rows("events", day):
            made = json.loads(row.operation)
            if row.call == "batch":
                assert made.pop("type") == "person"
                assert made.pop("identifiers") == identifiers(row.key)
                made["type"], made["data"] = made.pop("action"), made.pop("attributes")
            assert (row.ulid, row.name, row.type) == (made["id"], made["name"], made["type"])
            assert row.timestamp.replace(microsecond=0).timestamp() == made["timestamp"]
            order = (row.timestamp, row.uuid)
            assert last.get(row.key, order) <= order
            last[row.key] = order
            found.append({**made, "key": row.key, "call": row.call, "personless": row.personless})
        return found

    def rejects(self, day: str) -> Counter[tuple[str, str, str]]:
        """What was left out, or changed, of the events that are sent: (uuid, what, name), as often as it has a row."""
        return Counter((row.uuid, row.what, row.name) for row in self.rows("rejects", day) if row.what != "event")

    def outcomes(self, day: str) -> Counter[str]:
        """How many of the day's events were sent, filtered and refused."""
        counts: Counter[str] = Counter()
        for outcome, count in self.counts_by_day[day].outcomes.items():
            counts[outcome.partition(":")[0]] += count
        return +counts
