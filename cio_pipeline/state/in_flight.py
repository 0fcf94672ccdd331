"""Upserts that may have reached Customer.io although the ledger does not record it: the queries of `upserts_in_flight`.

They are stored before they are sent, and deleted once their day is delivered. So they tell what a delivery that was cut off may
have sent. `Ledger` passes a connection, or the transaction of a change.
"""

from __future__ import annotations

from collections import defaultdict

import msgspec
import sqlalchemy as sa

from cio_pipeline.attribute_state import latest_time, merge, only_time, pack, unpack
from cio_pipeline.state import customer_states
from cio_pipeline.state.ledger_tables import upserts_in_flight

_States = dict[bytes, bytes]


def keep(transaction: sa.Connection, day: str, states: dict[bytes, bytes]) -> None:
    """Stores the packed states of upserts of the day, by customer's id."""
    transaction.execute(sa.insert(upserts_in_flight), {"day": day, "states": msgspec.msgpack.encode(states)})


def find(connection: sa.Connection, day: str | None = None) -> dict[str, dict[bytes, bytes]]:
    """Returns the packed states by day and customer's id, of one day or all: of each attribute the one that was set last."""
    by_day: defaultdict[str, _States] = defaultdict(dict)
    rows = sa.select(upserts_in_flight.c.day, upserts_in_flight.c.states).order_by(upserts_in_flight.c.id)
    rows = rows if day is None else rows.where(upserts_in_flight.c.day == day)
    for its_day, stored in connection.execute(rows):
        states = by_day[its_day]
        for customer, state in msgspec.msgpack.decode(stored, type=_States).items():
            states[customer] = pack(merge(unpack(states[customer]), unpack(state))) if customer in states else state
    return dict(by_day)


def has(connection: sa.Connection, day: str) -> bool:
    """Returns whether there are any of the day."""
    of_day = sa.select(upserts_in_flight.c.id).where(upserts_in_flight.c.day == day)
    return bool(connection.execute(sa.select(of_day.exists())).scalar_one())


def delete(transaction: sa.Connection, day: str) -> None:
    """Deletes those of the day: all that were accepted are recorded."""
    transaction.execute(sa.delete(upserts_in_flight).where(upserts_in_flight.c.day == day))


def settle(transaction: sa.Connection, day: str) -> int:
    """Deletes those of the day, which was cut off, and is delivered now. Returns how many customers had no state before.

    What was in flight then need not be what the day's tables have now. So the ledger remembers the time of each upsert that is
    later than what it has recorded of the customer: no later upsert may have an earlier one.
    """
    times = {customer: latest_time(unpack(state)) for customer, state in find(transaction, day).get(day, {}).items()}
    recorded = customer_states.find(transaction, times)
    later = {one: time for one, time in times.items() if time > latest_time(unpack(recorded.get(one, b"")))}
    _, new_customers = customer_states.merge_into(transaction, {one: pack(only_time(time)) for one, time in later.items()})
    delete(transaction, day)
    return new_customers
