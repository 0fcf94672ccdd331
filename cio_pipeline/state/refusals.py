"""What Customer.io has refused: kept with its reason and the item itself until the item, or newer data, is accepted.

These are the queries of the ledger's table `refusals`. `Ledger` passes a connection, or the transaction of an acknowledgement.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import sqlalchemy as sa

from cio_pipeline.attribute_state import State, customer_id, is_superseded, pack, unpack
from cio_pipeline.state.database import chunks, insert
from cio_pipeline.state.ledger_tables import CHUNK, refusals


@dataclass(frozen=True)
class Refusal:
    """An item that Customer.io refused, with all that is needed to send it again. The fields are columns of the table."""

    item_id: str
    """An event's id in Customer.io (a ULID), or an upsert's `attribute_state.upsert_id`."""
    kind: str
    """`event` or `customer`."""
    reason: str
    """Customer.io's word for it, and the field."""
    detail: str
    """Customer.io's whole message, which may quote the data."""
    operation: str
    """What was sent."""
    key: str
    """The customer's key."""
    call: str = "batch"
    """How it was sent: `batch`, or `event` if it was too large for a batch."""
    state: State = field(default_factory=dict)
    """The hash and the time of each attribute of an upsert (`attribute_state`); empty for an event."""


class OpenRefusals(NamedTuple):
    """The items that Customer.io has refused for a reason and not accepted since."""

    reason: str
    number: int
    """How many there are."""
    first: str
    """The first of their days."""
    last: str
    """The last of their days."""


def find(connection: sa.Connection, day: str | None, reason: str | None, limit: int | None) -> dict[str, list[Refusal]]:
    """Returns the open refusals by day, oldest first: of one day, for one reason, or all (None); at most `limit` of them."""
    selected = sa.select(refusals).where(*_conditions(day, reason)).order_by(refusals.c.day, refusals.c.refused_at).limit(limit)
    by_day: dict[str, list[Refusal]] = defaultdict(list)
    for row in connection.execute(selected):
        texts = (row.item_id, row.kind, row.reason, row.detail, row.operation, row.key, row.call)
        by_day[row.day].append(Refusal(*texts, state=unpack(row.state)))
    return dict(by_day)


def days_and_items(connection: sa.Connection, day: str | None, reason: str | None) -> set[tuple[str, str]]:
    """Returns the day and the id of each refused item: of one day, for one reason, or all (None)."""
    selected = sa.select(refusals.c.day, refusals.c.item_id).where(*_conditions(day, reason))
    return {(row.day, row.item_id) for row in connection.execute(selected)}


def count_by_reason(connection: sa.Connection, day: str | None, reason: str | None) -> list[OpenRefusals]:
    """Returns the number of open refusals by reason, the most frequent first: of one day, for one reason, or all (None)."""
    count = sa.func.count()
    columns = (refusals.c.reason, count, sa.func.min(refusals.c.day), sa.func.max(refusals.c.day))
    counted = sa.select(*columns).where(*_conditions(day, reason)).group_by(refusals.c.reason)
    return [OpenRefusals(*row) for row in connection.execute(counted.order_by(count.desc(), refusals.c.reason))]


def days(connection: sa.Connection, day: str | None, reason: str | None) -> list[str]:
    """Returns the days that have open refusals, in order: only that day, for one reason, or all (None)."""
    selected = sa.select(refusals.c.day).where(*_conditions(day, reason)).distinct().order_by(refusals.c.day)
    return list(connection.execute(selected).scalars())


def count_by_kind(connection: sa.Connection, day: str) -> Mapping[str, int]:
    """Returns the number of the day's open refusals by kind, `event` and `customer`."""
    counted = sa.select(refusals.c.kind, sa.func.count()).where(refusals.c.day == day).group_by(refusals.c.kind)
    return {"event": 0, "customer": 0} | {row[0]: row[1] for row in connection.execute(counted)}


def count_events(connection: sa.Connection, days: list[str]) -> dict[str, int]:
    """Returns the number of refused events by day; a day without any is missing."""
    selected = sa.select(refusals.c.day, sa.func.count()).where(refusals.c.day.in_(days), refusals.c.kind == "event")
    return {row[0]: row[1] for row in connection.execute(selected.group_by(refusals.c.day))}


def keep(transaction: sa.Connection, day: str, refused: list[Refusal]) -> None:
    """Records the day's refused items; one that is already recorded stays as it is."""
    now = datetime.now(UTC).replace(tzinfo=None)
    rows = [
        {**vars(refusal), "day": day, "customer": customer_id(refusal.key), "state": pack(refusal.state), "refused_at": now}
        for refusal in refused
    ]
    if rows:
        transaction.execute(insert(transaction, refusals).on_conflict_do_nothing(), rows)


def close(transaction: sa.Connection, day: str, items: list[str]) -> None:
    """Closes the refusals of the items with these ids: an upsert's on this day, an event's, whose id stays the same, on any."""
    of_day_or_event = (refusals.c.day == day) | (refusals.c.kind == "event")
    for chunk in chunks(iter(items), CHUNK):
        transaction.execute(sa.delete(refusals).where(refusals.c.item_id.in_(chunk), of_day_or_event))


def close_superseded(transaction: sa.Connection, states: Mapping[bytes, bytes]) -> None:
    """Closes refused upserts, of any day, if all their attributes have been set since. states: packed, by customer's id."""
    columns = (refusals.c.item_id, refusals.c.day, refusals.c.customer, refusals.c.state)
    for chunk in chunks(iter(states), CHUNK):
        upserts = sa.select(*columns).where(refusals.c.customer.in_(chunk), refusals.c.kind == "customer")
        for row in transaction.execute(upserts).all():
            if is_superseded(unpack(row.state), unpack(states[row.customer])):
                transaction.execute(sa.delete(refusals).where(refusals.c.item_id == row.item_id, refusals.c.day == row.day))


def _conditions(day: str | None, reason: str | None) -> list[sa.ColumnElement[bool]]:
    pairs: list[tuple[sa.ColumnElement[Any], str | None]] = [(refusals.c.day, day), (refusals.c.reason, reason)]
    return [column == value for column, value in pairs if value is not None]
