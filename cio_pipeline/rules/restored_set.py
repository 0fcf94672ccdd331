"""R20: what an earlier extraction of the same day still had, and PostHog has dropped since, is copied from its table."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.rules.set_properties import SETS, is_filled, mentions, object_in
from cio_pipeline.rules.values import UUID, is_uuid

RESTORED = (*SETS, "$unset")
"""The properties that are copied."""

IDENTITY = ["event", "distinct_id", "uuid"]
"""The columns that, with its day, identify an event."""


def with_only_set_properties(events: pa.Table) -> pa.Table:
    """Returns the events with null `properties`, unless these mention a `$set`, `$set_once` or `$unset`: all that a later
    extraction may have to restore."""
    texts = pc.if_else(has_set(events), events["properties"], pa.scalar(None, pa.string()))
    return events.set_column(events.schema.get_field_index("properties"), "properties", texts)


def has_set(events: pa.Table) -> pa.ChunkedArray:
    """Returns which events (bool) mention one of the properties that are copied."""
    return mentions(events["properties"], *RESTORED)


class WithRestoredSet(NamedTuple):
    """Events, and for each (bool) whether an earlier extraction had it and whether it used the person's properties for it;
    `restored` is the number of events that got a property back."""

    events: pa.Table
    seen_before: pa.ChunkedArray
    used_person: pa.ChunkedArray
    restored: int


def with_restored_set(events: pa.Table, earlier: pa.Table) -> WithRestoredSet:
    """Copies `$set`, `$set_once` and `$unset` from `earlier` to the events that had them then and lack them now.

    `earlier` has the columns of `EVENT_SCHEMA`: the same window's events as an earlier extraction kept them, after
    `with_only_set_properties`. The person's properties that were used then are copied, too, if there are none now.
    """
    at = _rows_in(earlier, events)
    then = earlier.select(["properties", "person_properties"]).take(at)
    is_other = pc.fill_null(pc.not_equal(then["properties"], events["properties"]), True)
    differ = pc.and_(pc.is_valid(then["properties"]), is_other).combine_chunks()
    rows = np.flatnonzero(np.asarray(differ))
    texts, restored = events["properties"].combine_chunks(), 0
    if len(rows):
        pairs = zip(texts.take(pa.array(rows)).to_pylist(), then["properties"].take(pa.array(rows)).to_pylist(), strict=True)
        changed = [(now, _restored(now, had)) for now, had in pairs]
        restored = sum(text is not now for now, text in changed)
        texts = pc.replace_with_mask(texts, differ, pa.array([text for _, text in changed], pa.string()))
    persons = pc.coalesce(events["person_properties"], then["person_properties"])
    columns = {**dict(zip(events.column_names, events.columns, strict=True)), "properties": texts, "person_properties": persons}
    found = pa.table([columns[name] for name in events.column_names], schema=events.schema)
    return WithRestoredSet(found, pc.is_valid(at), pc.is_valid(then["person_properties"]), restored)


def _rows_in(earlier: pa.Table, events: pa.Table) -> pa.Array:
    """Returns the row number of each event in `earlier`; null if it is not there."""
    uuids = earlier["uuid"]
    at = pc.index_in(events["uuid"], uuids.combine_chunks()).combine_chunks()
    if len(pc.unique(uuids)) == len(uuids) and len(pc.unique(events["uuid"])) == len(events) and _are_uuids(uuids):
        found = earlier.select([*IDENTITY, "timestamp"]).take(at)
        same = pc.and_(pc.equal(found["event"], events["event"]), pc.equal(found["distinct_id"], events["distinct_id"]))
        same = pc.and_(same, pc.equal(_day(found["timestamp"]), _day(events["timestamp"])))
        return pc.if_else(pc.fill_null(same, False), at, pa.scalar(None, at.type)).combine_chunks()
    keys = [*IDENTITY, "day"]
    old = _with_identity(earlier).assign(row=range(len(earlier))).drop_duplicates(keys)
    found_rows = _with_identity(events)[keys].merge(old, on=keys, how="left")["row"]
    return pa.array(found_rows.astype("Int64"), pa.int32())


def _with_identity(events: pa.Table) -> pd.DataFrame:
    """Returns `IDENTITY` and `day`: the event's day, or its time if its uuid is not valid and so cannot identify it."""
    frame = events.select([*IDENTITY, "timestamp"]).to_pandas()
    have_uuids = pd.Series([is_uuid(text) for text in frame["uuid"].tolist()], frame.index, dtype=bool)
    return frame.assign(day=frame["timestamp"].dt.floor("D").where(have_uuids, frame["timestamp"]))


def _restored(new: Any, old: str) -> Any:
    """Returns the new properties (JSON text) with those of `RESTORED` that only the old ones have.

    Returns `new` itself if nothing is missing, or if it is not a JSON object.
    """
    text = new if isinstance(new, str) and new.strip() else "{}"
    now, had = object_in(text), object_in(old)
    missing = {name: had[name] for name in RESTORED if is_filled(name, had.get(name)) and not is_filled(name, now.get(name))}
    if not missing or not text.lstrip().startswith("{") or (not now and text.strip().strip("{} \t\r\n")):
        return new
    if now.keys() & missing.keys():
        return json.dumps({**now, **missing})
    return f"{text.rstrip()[:-1]}{',' if now else ''}{json.dumps(missing)[1:]}"


def _day(times: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.floor_temporal(times, unit="day")


def _are_uuids(texts: pa.ChunkedArray) -> bool:
    return pc.all(pc.match_substring_regex(texts, f"^{UUID.pattern}$")).as_py() is not False
