"""R20: which events have lost their `$set`, and what an earlier extraction of the same day still knows of it.

PostHog drops `$set` and `$set_once` from stored events after 60 days, but keeps the person's properties for good.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.json_text import loads
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.values import EPOCH, UUID, is_uuid

AttributesFrom = Literal["auto", "set", "person"]
"""CIO_ATTRIBUTES_FROM."""

SET_SURELY_KEPT = timedelta(days=59)
"""An event up to this age still has its `$set`, if it ever had one."""

SET_SURELY_DROPPED = timedelta(days=61)
"""If an event over this age still has its `$set`, this PostHog does not drop any."""

SETS = ("$set", "$set_once")
RESTORED = (*SETS, "$unset")
"""The properties that are copied from an earlier extraction."""

TIME = pa.timestamp("us", "UTC")

IDENTITY = ["event", "distinct_id", "uuid"]
"""The columns that, with its day, identify an event."""

EventPosition = tuple[Any, ...]
"""An event's values of the columns `facts.ORDER`: its place in chronological order."""


def reaches_back(start: datetime, now: datetime) -> bool:
    """Whether a window that begins at `start` is old enough to hold events that have lost their `$set`."""
    return start < now - SET_SURELY_KEPT


def columns_with_emails(attributes_from: AttributesFrom, start: datetime) -> tuple[str, ...]:
    """Returns the columns in which a window's events may have an email to learn (R1: who has which email).

    An old window's `person_properties` count with every setting, `set` included: an event that had its `$set` when the day was
    extracted before must be found again.
    """
    if attributes_from == "person":
        return ("person_properties",)
    return ("properties", "person_properties") if reaches_back(start, datetime.now(UTC)) else ("properties",)


def first_with_set(events: pa.Table, before: EventPosition | None = None) -> EventPosition | None:
    """Returns the position of the first event with a `$set` or `$set_once`, or `before` if that is earlier.

    Returns None if there is no such event and no `before`. Events without a readable time (before 1970) do not count.
    """
    candidates = pc.and_(_mentions(events["properties"], "$set"), pc.greater_equal(events["timestamp"], pa.scalar(EPOCH, TIME)))
    found = events.select([*ORDER, "properties"]).filter(candidates)
    if before is not None:
        found = found.filter(pc.less_equal(found["timestamp"], pa.scalar(before[0], TIME)))
    for batch in found.sort_by([(name, "ascending") for name in ORDER]).to_batches(max_chunksize=100):
        for *position, text in zip(*(batch[name].to_pylist() for name in (*ORDER, "properties")), strict=True):
            if before is not None and tuple(position) >= before:
                return before
            if has_set(text):
                return tuple(position)
    return before


def has_set(properties: Any) -> bool:
    """Whether the properties (JSON text) have a `$set` or `$set_once` that is an object and not empty."""
    if not isinstance(properties, str) or "$set" not in properties:
        return False
    found = _object(properties)
    return any(_is_filled(name, found.get(name)) for name in SETS)


def dropped_in_day(
    events: pa.Table, used_person: pa.ChunkedArray, had_set: pa.ChunkedArray, first: EventPosition | None, now: datetime
) -> pa.ChunkedArray:
    """Returns which of a day's events have lost their `$set` (bool).

    An event has lost its `$set` if it is over 59 days old and comes before `first`, the day's first event that still has one.
    If `first` itself is over 61 days old, this PostHog drops nothing. A decision of an earlier extraction is kept: events in
    `used_person` use the person's properties again (unless they have a `$set` now), events in `had_set` do not.
    """
    is_old = pc.less(events["timestamp"], pa.scalar(now - SET_SURELY_KEPT, TIME))
    drops_nothing = first is not None and first[0] < now - SET_SURELY_DROPPED
    is_before = pc.and_(_constant(len(events), not drops_nothing), _is_before(events, first))
    uses_person_again = [used and not has_set(text) for used, text in _texts_where(used_person, events["properties"])]
    return pc.and_(is_old, pc.or_(pa.array(uses_person_again, pa.bool_()), pc.and_not(is_before, had_set)))


def dropped_in_history(events: pa.Table, now: datetime) -> pa.ChunkedArray:
    """Returns which events of the history before the first day have lost their `$set` (bool): every one over 59 days old that
    has none (R18)."""
    is_old = pc.less(events["timestamp"], pa.scalar(now - SET_SURELY_KEPT, TIME))
    have_set = [has_set(text) for _, text in _texts_where(_mentions(events["properties"], "$set"), events["properties"])]
    return pc.and_not(is_old, pa.array(have_set, pa.bool_()))


def with_only_set_properties(events: pa.Table) -> pa.Table:
    """Returns the events with null `properties`, unless these mention a `$set`, `$set_once` or `$unset`: all that a later
    extraction may have to restore."""
    texts = pc.if_else(_mentions(events["properties"], *RESTORED), events["properties"], pa.scalar(None, pa.string()))
    return events.set_column(events.schema.get_field_index("properties"), "properties", texts)


def any_has_set(properties: pa.ChunkedArray) -> bool:
    """Whether any of the properties (JSON text) have a `$set` or `$set_once`."""
    return any(has_set(text.as_py()) for text in properties.filter(_mentions(properties, "$set")))


def always_used_person(events: pa.Table) -> bool:
    """Whether an earlier extraction used the person's properties even for events with a `$set`, as CIO_ATTRIBUTES_FROM=person
    does."""
    return any_has_set(events["properties"].filter(pc.is_valid(events["person_properties"])))


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


def has_attributes(events: pa.Table) -> bool:
    """Whether any event has an attribute: in the person's properties if these are used, otherwise in its `$set`."""
    for batch in events.select(["properties", "person_properties"]).to_batches(max_chunksize=1000):
        for properties, person in zip(batch["properties"].to_pylist(), batch["person_properties"].to_pylist(), strict=True):
            if person is not None:
                if len(person) > 2 and _object(person):
                    return True
            elif isinstance(properties, str) and "$set" in properties and _is_filled("$set", _object(properties).get("$set")):
                return True
    return False


def with_person_properties(events: pa.Table, used: pa.ChunkedArray | bool) -> pa.Table:
    """Returns the events with `person_properties` set to null, except for those that use them."""
    persons = events["person_properties"]
    if used is False:
        persons = pa.nulls(len(events), pa.string())
    elif used is not True:
        persons = pc.if_else(used, persons, pa.scalar(None, pa.string()))
    return events.set_column(
        events.schema.get_field_index("person_properties"), events.schema.field("person_properties"), persons
    )


def _is_before(events: pa.Table, first: EventPosition | None) -> pa.Array | pa.ChunkedArray:
    """Whether each event comes before that position (bool); all do if it is None."""
    if first is None:
        return _constant(len(events), True)
    is_before, is_same = _constant(len(events), False), _constant(len(events), True)
    for name, value in zip(ORDER, first, strict=True):
        at = pa.scalar(value, events.schema.field(name).type)
        is_before = pc.or_(is_before, pc.and_(is_same, pc.less(events[name], at)))
        is_same = pc.and_(is_same, pc.equal(events[name], at))
    return is_before


def _constant(rows: int, value: bool) -> pa.Array:
    return pa.array(np.full(rows, value))


def _day(times: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.floor_temporal(times, unit="day")


def _are_uuids(texts: pa.ChunkedArray) -> bool:
    return pc.all(pc.match_substring_regex(texts, f"^{UUID.pattern}$")).as_py() is not False


def _texts_where(mask: pa.ChunkedArray, texts: pa.ChunkedArray) -> Iterator[tuple[bool, str | None]]:
    """Yields each row's mask, and its text if that is true: other texts need not become Python strings."""
    chosen = pc.if_else(mask, texts, pa.scalar(None, pa.string()))
    return zip(mask.to_pylist(), chosen.to_pylist(), strict=True)


def _restored(new: Any, old: str) -> Any:
    """Returns the new properties (JSON text) with those of `RESTORED` that only the old ones have.

    Returns `new` itself if nothing is missing, or if it is not a JSON object.
    """
    text = new if isinstance(new, str) and new.strip() else "{}"
    now, had = _object(text), _object(old)
    missing = {name: had[name] for name in RESTORED if _is_filled(name, had.get(name)) and not _is_filled(name, now.get(name))}
    if not missing or not text.lstrip().startswith("{") or (not now and text.strip().strip("{} \t\r\n")):
        return new
    if now.keys() & missing.keys():
        return json.dumps({**now, **missing})
    return f"{text.rstrip()[:-1]}{',' if now else ''}{json.dumps(missing)[1:]}"


def _is_filled(name: str, value: Any) -> bool:
    return bool(value) and isinstance(value, (dict, list) if name == "$unset" else dict)


def _mentions(texts: pa.ChunkedArray, *names: str) -> pa.Array:
    """Whether each text contains one of the names (bool): parsing is expensive, so only such texts are parsed.

    All texts are searched at once, as the one block of memory that Arrow keeps them in: ten times as fast as Arrow's search.
    """
    array = pa.concat_arrays([pa.array([], pa.string()), *texts.chunks])
    found = np.zeros(len(array), bool)
    _, offsets, content = array.buffers()
    if content is not None:
        ends, content = np.frombuffer(offsets, np.int32, len(array) + 1)[1:].tolist(), content.to_pybytes()
        for name in names:
            at = content.find(name.encode())
            while at >= 0:
                row = bisect_right(ends, at)
                found[row] = True
                at = content.find(name.encode(), ends[row])
    return pa.array(found)


def _object(text: str) -> dict[str, Any]:
    """Returns the JSON object in the text; an empty one if there is none."""
    try:
        found = loads(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
