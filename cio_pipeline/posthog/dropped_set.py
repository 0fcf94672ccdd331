"""R20: which events have lost the `$set` that PostHog has dropped, and what an earlier extraction still has of it.

PostHog keeps `$set` and `$set_once` of a stored event for 60 days, but the person properties for ever.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.json_text import loads
from cio_pipeline.posthog.source import EVENT_SCHEMA, EVER, AttributesFrom
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.values import UUID, is_uuid

KEPT = timedelta(days=59)
"""An event that is not older than this still has its `$set`, if it ever had one."""

DROPPED = timedelta(days=61)
"""An event that is older than this and still has its `$set` shows that this PostHog drops none."""

SETS = ("$set", "$set_once")
REMEMBERED = (*SETS, "$unset")
TIME = EVENT_SCHEMA.field("timestamp").type
IDENTITY = ["event", "distinct_id", "uuid"]
"""What identifies an event within its day."""

Moment = tuple[Any, ...]
"""An event's place in the order of `facts.ORDER`."""


def reaches_back(start: datetime, now: datetime) -> bool:
    """Whether a window that starts then may have events whose `$set` was dropped."""
    return start < now - KEPT


def columns_with_emails(attributes_from: AttributesFrom, start: datetime) -> tuple[str, ...]:
    """The columns of a window's events that may have an email to learn (R1): for an old window also the person properties.

    This includes `set`: an event that had its `$set` when the day was extracted before must be found again.
    """
    if attributes_from == "person":
        return ("person_properties",)
    return ("properties", "person_properties") if reaches_back(start, datetime.now(UTC)) else ("properties",)


def first_with_set(events: pa.Table, before: Moment | None = None) -> Moment | None:
    """The place of the first event that has a `$set` or `$set_once`, or `before` if that is earlier; None if there is none.

    Events whose time cannot be read do not count.
    """
    may = pc.and_(_names(events["properties"], "$set"), pc.greater_equal(events["timestamp"], pa.scalar(EVER, TIME)))
    rows = events.select([*ORDER, "properties"]).filter(may)
    if before is not None:
        rows = rows.filter(pc.less_equal(rows["timestamp"], pa.scalar(before[0], TIME)))
    for row in rows.sort_by([(name, "ascending") for name in ORDER]).to_batches(max_chunksize=100):
        for *moment, text in zip(*(row[name].to_pylist() for name in (*ORDER, "properties")), strict=True):
            if before is not None and tuple(moment) >= before:
                return before
            if has_set(text):
                return tuple(moment)
    return before


def has_set(properties: Any) -> bool:
    """Whether properties (JSON text) have a `$set` or `$set_once` that is an object and not empty."""
    if not isinstance(properties, str) or "$set" not in properties:
        return False
    members = _object(properties)
    return any(_is_given(name, members.get(name)) for name in SETS)


def lost_of_a_day(
    events: pa.Table, took: pa.ChunkedArray, stays: pa.ChunkedArray, first: Moment | None, now: datetime
) -> pa.ChunkedArray:
    """Which of a day's events have lost their `$set` (R20).

    first: the day's first event that has one, according to what PostHog gives now. The old events before it have lost theirs,
    unless it is so old that this PostHog drops none. What an earlier extraction decided stays: an event that took the person
    properties (`took`) does so again; one that was there when `$set` was still there (`stays`) does not.
    """
    old = pc.less(events["timestamp"], pa.scalar(now - KEPT, TIME))
    drops_none = first is not None and first[0] < now - DROPPED
    before = pc.and_(_all(len(events), not drops_none), _before(events, first))
    taken_before = [is_so and not has_set(text) for is_so, text in _where(took, events["properties"])]
    return pc.and_(old, pc.or_(pa.array(taken_before, pa.bool_()), pc.and_not(before, stays)))


def lost_of_the_history(events: pa.Table, now: datetime) -> pa.ChunkedArray:
    """Which events of the history have lost their `$set`: each old one that has none (R18)."""
    old = pc.less(events["timestamp"], pa.scalar(now - KEPT, TIME))
    having = [has_set(text) for _, text in _where(_names(events["properties"], "$set"), events["properties"])]
    return pc.and_not(old, pa.array(having, pa.bool_()))


def known(events: pa.Table) -> pa.Table:
    """The events of an earlier extraction, with their properties only if a later extraction may lack a `$set` that is in
    them."""
    texts = pc.if_else(_names(events["properties"], *REMEMBERED), events["properties"], pa.scalar(None, pa.string()))
    return events.set_column(events.schema.get_field_index("properties"), "properties", texts)


def any_has_set(properties: pa.ChunkedArray) -> bool:
    """Whether any of the properties have a `$set` or `$set_once`, so that PostHog had not dropped all of them at the
    extraction."""
    return any(has_set(text.as_py()) for text in properties.filter(_names(properties, "$set")))


def took_all(events: pa.Table) -> bool:
    """Whether an earlier extraction took the person properties whatever the event's `$set`, as `person` does."""
    return any_has_set(events["properties"].filter(pc.is_valid(events["person_properties"])))


class Remembered(NamedTuple):
    """Events with what an earlier extraction knew of them.

    was_there: whether each was there then; took: whether it had taken the person properties; regained: how many events got any
    property back.
    """

    events: pa.Table
    was_there: pa.ChunkedArray
    took: pa.ChunkedArray
    regained: int


def remembered(events: pa.Table, before: pa.Table) -> Remembered:
    """The events with the `$set`, `$set_once` and `$unset` that they had in `before` and lack now.

    before: has the columns of `EVENT_SCHEMA`, as `known` gives them. Person properties that an event took then stay if there
    are none now.
    """
    at = _places(events, before)
    then = before.select(["properties", "person_properties"]).take(at)
    is_other = pc.fill_null(pc.not_equal(then["properties"], events["properties"]), True)
    differ = pc.and_(pc.is_valid(then["properties"]), is_other).combine_chunks()
    rows = np.flatnonzero(np.asarray(differ))
    texts, count = events["properties"].combine_chunks(), 0
    if len(rows):
        pairs = zip(texts.take(pa.array(rows)).to_pylist(), then["properties"].take(pa.array(rows)).to_pylist(), strict=True)
        mended = [(now, _with(now, had)) for now, had in pairs]
        count = sum(text is not now for now, text in mended)
        texts = pc.replace_with_mask(texts, differ, pa.array([text for _, text in mended], pa.string()))
    persons = pc.coalesce(events["person_properties"], then["person_properties"])
    columns = {**dict(zip(events.column_names, events.columns, strict=True)), "properties": texts, "person_properties": persons}
    mended_events = pa.table([columns[name] for name in events.column_names], schema=events.schema)
    return Remembered(mended_events, pc.is_valid(at), pc.is_valid(then["person_properties"]), count)


def _places(events: pa.Table, before: pa.Table) -> pa.Array:
    """The row of each event in `before`, null where it is not there."""
    uuids = before["uuid"]
    at = pc.index_in(events["uuid"], uuids.combine_chunks()).combine_chunks()
    if len(pc.unique(uuids)) == len(uuids) and len(pc.unique(events["uuid"])) == len(events) and _are_uuids(uuids):
        candidates = before.select([*IDENTITY, "timestamp"]).take(at)
        same = pc.and_(
            pc.equal(candidates["event"], events["event"]), pc.equal(candidates["distinct_id"], events["distinct_id"])
        )
        same = pc.and_(same, pc.equal(_day(candidates["timestamp"]), _day(events["timestamp"])))
        return pc.if_else(pc.fill_null(same, False), at, pa.scalar(None, at.type)).combine_chunks()
    keys = [*IDENTITY, "day"]
    old = _with_identity(before).assign(row=range(len(before))).drop_duplicates(keys)
    found_rows = _with_identity(events)[keys].merge(old, on=keys, how="left")["row"]
    return pa.array(found_rows.astype("Int64"), pa.int32())


def _with_identity(events: pa.Table) -> pd.DataFrame:
    """`IDENTITY` and the day of each event; its time instead, if its uuid is not valid and does not distinguish it from
    others."""
    frame = events.select([*IDENTITY, "timestamp"]).to_pandas()
    have_uuids = pd.Series([is_uuid(text) for text in frame["uuid"].tolist()], frame.index, dtype=bool)
    return frame.assign(day=frame["timestamp"].dt.floor("D").where(have_uuids, frame["timestamp"]))


def gives_any(events: pa.Table) -> bool:
    """Whether any event gives an attribute: by the person properties if it has them, or else by its `$set`."""
    for part in events.select(["properties", "person_properties"]).to_batches(max_chunksize=1000):
        for properties, person in zip(part["properties"].to_pylist(), part["person_properties"].to_pylist(), strict=True):
            if person is not None:
                if len(person) > 2 and _object(person):
                    return True
            elif isinstance(properties, str) and "$set" in properties and _is_given("$set", _object(properties).get("$set")):
                return True
    return False


def taking(events: pa.Table, taken: pa.ChunkedArray | bool) -> pa.Table:
    """The events with the person properties where these are to be taken, and null elsewhere."""
    persons = events["person_properties"]
    if taken is False:
        persons = pa.nulls(len(events), pa.string())
    elif taken is not True:
        persons = pc.if_else(taken, persons, pa.scalar(None, pa.string()))
    return events.set_column(
        events.schema.get_field_index("person_properties"), events.schema.field("person_properties"), persons
    )


def _before(events: pa.Table, first: Moment | None) -> Any:
    """Whether each event comes before that place; all do if there is none."""
    if first is None:
        return _all(len(events), True)
    is_before, is_same = _all(len(events), False), _all(len(events), True)
    for name, value in zip(ORDER, first, strict=True):
        at = pa.scalar(value, events.schema.field(name).type)
        is_before = pc.or_(is_before, pc.and_(is_same, pc.less(events[name], at)))
        is_same = pc.and_(is_same, pc.equal(events[name], at))
    return is_before


def _all(rows: int, value: bool) -> pa.Array:
    return pa.array(np.full(rows, value))


def _day(times: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.floor_temporal(times, unit="day")


def _are_uuids(texts: pa.ChunkedArray) -> bool:
    return pc.all(pc.match_substring_regex(texts, f"^{UUID.pattern}$")).as_py() is not False


def _where(mask: pa.ChunkedArray, texts: pa.ChunkedArray) -> Iterator[tuple[bool, str | None]]:
    """Each row's mask, and its text where that is true, so that only those texts become Python's."""
    chosen = pc.if_else(mask, texts, pa.scalar(None, pa.string()))
    return zip(mask.to_pylist(), chosen.to_pylist(), strict=True)


def _with(new: Any, old: str) -> Any:
    """The new text with what the old one had and it lacks; unchanged if it is not an object."""
    text = new if isinstance(new, str) and new.strip() else "{}"
    now, had = _object(text), _object(old)
    missing = {name: had[name] for name in REMEMBERED if _is_given(name, had.get(name)) and not _is_given(name, now.get(name))}
    if not missing or not text.lstrip().startswith("{") or (not now and text.strip().strip("{} \t\r\n")):
        return new
    if now.keys() & missing.keys():
        return json.dumps({**now, **missing})
    return f"{text.rstrip()[:-1]}{',' if now else ''}{json.dumps(missing)[1:]}"


def _is_given(name: str, value: Any) -> bool:
    return bool(value) and isinstance(value, (dict, list) if name == "$unset" else dict)


def _names(texts: pa.ChunkedArray, *names: str) -> pa.Array:
    """Whether each text contains one of these names. Parsing is slow, so only such text is parsed.

    All texts are searched as the one piece of memory that they are in Arrow, which takes a tenth of the time of Arrow's own
    search.
    """
    array = pa.concat_arrays([pa.array([], pa.string()), *texts.chunks])
    has_name = np.zeros(len(array), bool)
    _, offsets, content = array.buffers()
    if content is not None:
        ends, content = np.frombuffer(offsets, np.int32, len(array) + 1)[1:].tolist(), content.to_pybytes()
        for name in names:
            at = content.find(name.encode())
            while at >= 0:
                row = bisect_right(ends, at)
                has_name[row] = True
                at = content.find(name.encode(), ends[row])
    return pa.array(has_name)


def _object(text: str) -> dict[str, Any]:
    try:
        value = loads(text.encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
