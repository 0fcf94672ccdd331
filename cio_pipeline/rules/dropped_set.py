"""R20: which events have lost their `$set`, and so use the person's properties.

PostHog drops `$set` and `$set_once` from stored events after 60 days, but keeps the person's properties for good. What an
earlier extraction of the same day still had is copied from its table (`restored_set`).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.rules.columns import TIME, constant
from cio_pipeline.rules.facts import ORDER
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.rules.set_properties import any_has_set, has_set, mentions
from cio_pipeline.rules.values import EPOCH

SET_SURELY_KEPT = timedelta(days=59)
"""An event up to this age still has its `$set`, if it ever had one."""

SET_SURELY_DROPPED = timedelta(days=61)
"""If an event over this age still has its `$set`, this PostHog does not drop any."""

EventPosition = tuple[Any, ...]
"""An event's values of the columns `facts.ORDER`: its place in chronological order."""


def reaches_back(start: datetime, now: datetime) -> bool:
    """Returns whether a window that begins at `start` is old enough to hold events that have lost their `$set`."""
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
    candidates = pc.and_(mentions(events["properties"], "$set"), pc.greater_equal(events["timestamp"], pa.scalar(EPOCH, TIME)))
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
    is_before = pc.and_(constant(len(events), not drops_nothing), _is_before(events, first))
    uses_person_again = [used and not has_set(text) for used, text in _texts_where(used_person, events["properties"])]
    return pc.and_(is_old, pc.or_(pa.array(uses_person_again, pa.bool_()), pc.and_not(is_before, had_set)))


def dropped_in_history(events: pa.Table, now: datetime) -> pa.ChunkedArray:
    """Returns which events of the history before the first day have lost their `$set` (bool): every one over 59 days old that
    has none (R18)."""
    is_old = pc.less(events["timestamp"], pa.scalar(now - SET_SURELY_KEPT, TIME))
    have_set = [has_set(text) for _, text in _texts_where(mentions(events["properties"], "$set"), events["properties"])]
    return pc.and_not(is_old, pa.array(have_set, pa.bool_()))


def always_used_person(events: pa.Table) -> bool:
    """Returns whether an earlier extraction used the person's properties even for events with a `$set`, as
    CIO_ATTRIBUTES_FROM=person does."""
    return any_has_set(events["properties"].filter(pc.is_valid(events["person_properties"])))


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
    """Returns whether each event comes before that position (bool); all do if it is None."""
    if first is None:
        return constant(len(events), True)
    is_before, is_same = constant(len(events), False), constant(len(events), True)
    for name, value in zip(ORDER, first, strict=True):
        at = pa.scalar(value, events.schema.field(name).type)
        is_before = pc.or_(is_before, pc.and_(is_same, pc.less(events[name], at)))
        is_same = pc.and_(is_same, pc.equal(events[name], at))
    return is_before


def _texts_where(mask: pa.ChunkedArray, texts: pa.ChunkedArray) -> Iterator[tuple[bool, str | None]]:
    """Yields each row's mask, and its text if that is true: other texts need not become Python strings."""
    chosen = pc.if_else(mask, texts, pa.scalar(None, pa.string()))
    return zip(mask.to_pylist(), chosen.to_pylist(), strict=True)
