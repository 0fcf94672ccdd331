"""What Customer.io has acknowledged, so that a rerun sends only what is new and a killed run goes on where it stopped.

Per partition the ids of the events it took, packed as 16 bytes each, one row a request, with how many customers that made.
Per customer each attribute's last acknowledged value (a hash) and time. Neither holds anybody's data. What Customer.io refused
stands here too, with its reason and the item itself.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cio_pipeline.customer_state import (
    CUSTOMER,
    ULID_BYTES,
    State,
    customer_id,
    id_halves,
    is_superseded,
    merge,
    pack,
    unpack,
)
from cio_pipeline.state.database import CUT_OFF_SECONDS, chunks, connect, reading, writing
from cio_pipeline.state.delivery_lock import IsHeld, LockLost, hold_delivery_lock
from cio_pipeline.state.ledger_tables import CHUNK, VERSION, deliveries, delivery_lock, metadata, refusals

_STATES = """
    WITH RECURSIVE place(n) AS (SELECT 1 UNION ALL SELECT n + :size FROM place WHERE n + :size <= length(:customers))
    SELECT customer, state FROM place CROSS JOIN customer_states WHERE customer = substr(:customers, n, :size)
"""
"""The states of customers whose ids, of `size` bytes each, are joined in one parameter: thousands of parameters are dear."""

STATES, STATES_TO_CHANGE = sa.text(_STATES), sa.text(f"{_STATES} FOR UPDATE OF customer_states")
KEEP_STATE = (
    "INSERT INTO customer_states (customer, state) VALUES (?, ?) ON CONFLICT (customer) DO UPDATE SET state = excluded.state"
)
KEEP_DELIVERED = "INSERT INTO deliveries (day, event_uuids, new_customers, campaign_events) VALUES (?, ?, ?, ?)"
"""These go to the driver as they are: a delivery has one or two a request, and thousands of rows."""

HOLDER = "SELECT (SELECT holder FROM delivery_lock{0}), EXISTS (SELECT 1 FROM refusals)"
"""Who has taken the lock last, and whether there is any refusal."""


@dataclass(frozen=True)
class Refusal:
    """An item that Customer.io refused, with what it takes to send it again.

    item: the event's id in Customer.io (a ULID), or `schema.customer_item`; kind: `event` or `customer`; reason: Customer.io's
    word for it and the field; detail: its whole message, which may quote the data; operation: what was sent; key, call and
    state: the item's.
    """

    item: str
    kind: str
    reason: str
    detail: str
    operation: str
    key: str
    call: str = "batch"
    state: State = field(default_factory=dict)


class Entry(NamedTuple):
    """What tells an acknowledgement from all others, in whichever copy of a ledger: number, day, and its first event's id."""

    number: int
    day: str
    first_id: str


class OpenRefusals(NamedTuple):
    """How many items Customer.io has refused for a reason and not accepted since, and the first and last of their days."""

    reason: str
    items: int
    first: str
    last: str


@dataclass
class Acknowledgement:
    """What one answer of Customer.io says: the events and the customers' attributes it took, the items taken and refused.

    event_ids: as `pack_ids` packs them, one after another; customers: by key, a state as `customer_state.pack`
    packs it, or several of different attributes, joined; campaign_events: how many of the events were new to Customer.io and
    young enough to start campaigns; accepted: gives the names of the items taken, where they are needed.
    """

    event_ids: bytes = b""
    campaign_events: int = 0
    customers: dict[str, bytes] = field(default_factory=dict)
    accepted: Callable[[], list[str]] = list
    refused: list[Refusal] = field(default_factory=list)


OF_EVENTS = sa.func.length(deliveries.c.event_uuids) > 0
NEWEST = sa.select(deliveries.c.id).where(OF_EVENTS).order_by(deliveries.c.id.desc()).limit(1).scalar_subquery()
"""The last acknowledgement of events: others bring new customers alone."""


@dataclass(frozen=True)
class DayTotals:
    """What all runs together have made of a day: events that were delivered, each once; customers that were new; events that
    were young enough to start campaigns; what Customer.io has refused and not accepted since, and the events among it."""

    events: int = 0
    new_customers: int = 0
    campaign_events: int = 0
    refused: int = 0
    refused_events: int = 0


class Ledger:
    """The ledger in the database at an SQLAlchemy URL. Its methods raise `database.DatabaseError` where that is away."""

    def __init__(self, url: str, cut_off_seconds: int = CUT_OFF_SECONDS) -> None:
        self._engine = connect(url, metadata, VERSION, cut_off_seconds)
        self._lock: tuple[str, IsHeld] | None = None

    def close(self) -> None:
        """Closes the connections of this process to the database; what is asked next opens new ones."""
        self._engine.dispose()

    @contextmanager
    def hold_delivery_lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        """One delivery at a time: what the ledger knows does not change between reading it and sending, and one rate holds.

        The lock may be lost with its session or file. From then on `acknowledge` and `check_lock` raise `LockLost`: the
        delivery that took the lock after this one has written its own name where this one's stood.
        """
        with hold_delivery_lock(self._engine, waiting) as is_held:
            holder = uuid.uuid4().hex
            row = {"id": 1, "holder": holder}
            with writing(self._engine) as transaction:
                insert = self._insert(delivery_lock).values(row)
                transaction.execute(insert.on_conflict_do_update(index_elements=["id"], set_=row))
                _check(is_held(transaction))
            self._lock = (holder, is_held)
            try:
                yield
            finally:
                self._lock = None

    def check_lock(self) -> None:
        """To be called before a request: raises `delivery_lock.LockLost` where the delivery has lost its lock.

        Whoever has taken it since is left to `acknowledge` to find: nobody could while it is held.
        """
        if self._lock is not None:
            _, is_held = self._lock
            _check(is_held(None))

    def delivered(self, day: str) -> Any:
        """The day's events that Customer.io has acknowledged: their ids as `pack_ids` packs them, sorted, each once."""
        with reading(self._engine) as connection:
            packed = connection.execute(sa.select(deliveries.c.event_uuids).where(deliveries.c.day == day)).scalars()
            ids = np.frombuffer(b"".join(packed), dtype="S16")
        first, last = id_halves(ids)
        order = np.lexsort((last, first))
        again = (np.diff(first[order]) == 0) & (np.diff(last[order]) == 0)
        return ids[order][np.append(np.ones(min(1, len(ids)), bool), ~again)]

    def newest(self) -> Entry | None:
        """The last acknowledgement of events; None where there is none."""
        return self._entry(NEWEST)

    def has(self, entry: Entry) -> bool:
        """Whether it is in this ledger."""
        return self._entry(entry.number) == entry

    def _entry(self, number: Any) -> Entry | None:
        found = (deliveries.c.id, deliveries.c.day, sa.func.substr(deliveries.c.event_uuids, 1, 16))
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(*found).where(deliveries.c.id == number)).first()
        return None if row is None else Entry(row[0], row[1], bytes(row[2] or b"").hex())

    def totals(self, day: str) -> DayTotals:
        """What all runs together have made of the day."""
        counts = (sa.func.coalesce(sa.func.sum(deliveries.c[name]), 0) for name in ("new_customers", "campaign_events"))
        refused = {"event": 0, "customer": 0}
        with reading(self._engine) as connection:
            new_customers, campaign_events = connection.execute(sa.select(*counts).where(deliveries.c.day == day)).one()
            kinds = sa.select(refusals.c.kind, sa.func.count()).where(refusals.c.day == day).group_by(refusals.c.kind)
            refused.update({row[0]: row[1] for row in connection.execute(kinds)})
        events = len(self.delivered(day))
        return DayTotals(events, int(new_customers), int(campaign_events), sum(refused.values()), refused["event"])

    def events_delivered(self, days: list[str]) -> dict[str, int]:
        """How many events were delivered on each of the days, without reading them: one that was sent twice counts twice."""
        size = sa.func.sum(sa.func.length(deliveries.c.event_uuids))
        wanted = sa.select(deliveries.c.day, size).where(deliveries.c.day.in_(days)).group_by(deliveries.c.day)
        with reading(self._engine) as connection:
            return {row[0]: int(row[1]) // ULID_BYTES for row in connection.execute(wanted)}

    def new_customers(self, day: str) -> int:
        """How many customers the day's deliveries have made."""
        made = sa.select(sa.func.coalesce(sa.func.sum(deliveries.c.new_customers), 0)).where(deliveries.c.day == day)
        with reading(self._engine) as connection:
            return int(connection.execute(made).scalar_one())

    def events_refused(self, days: list[str]) -> dict[str, int]:
        """How many events of each of the days Customer.io has refused and not accepted since."""
        wanted = sa.select(refusals.c.day, sa.func.count()).where(refusals.c.day.in_(days), refusals.c.kind == "event")
        with reading(self._engine) as connection:
            return {row[0]: row[1] for row in connection.execute(wanted.group_by(refusals.c.day))}

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        """What Customer.io holds of these customers; one it has not heard of is missing."""
        return {key: unpack(state) for key, state in self.packed_states(keys).items()}

    def packed_states(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The same, as `customer_state.pack` packs it."""
        by_id = {customer_id(key): key for key in keys}
        with reading(self._engine) as connection:
            found = connection.execute(STATES, _joined(by_id))
            return {by_id[customer]: state for customer, state in found}

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """Those of the keys that Customer.io has acknowledged nothing of: to send them makes new customers."""
        by_id = {customer_id(key): key for key in keys}
        with reading(self._engine) as connection:
            for customer, _ in connection.execute(STATES, _joined(by_id)):
                del by_id[customer]
        return list(by_id.values())

    def refused(self, day: str) -> dict[str, Refusal]:
        """What Customer.io refused of the day, by item."""
        return {refusal.item: refusal for refusal in self.refusals(day).get(day, [])}

    def refusals(self, day: str | None = None, reason: str | None = None, limit: int | None = None) -> dict[str, list[Refusal]]:
        """What Customer.io refused and has not accepted since, by day: of one day, for one reason, or all, as they came; the
        first so many of them."""
        wanted = sa.select(refusals).where(*_meant(day, reason)).order_by(refusals.c.day, refusals.c.refused_at).limit(limit)
        found: dict[str, list[Refusal]] = defaultdict(list)
        with reading(self._engine) as connection:
            for row in connection.execute(wanted):
                state = unpack(row.state)
                texts = (row.item, row.kind, row.reason, row.detail, row.operation, row.key, row.call)
                found[row.day].append(Refusal(*texts, state=state))
        return dict(found)

    def days_refused(self, day: str | None = None, reason: str | None = None) -> list[str]:
        """The days that have such refusals, in order."""
        wanted = sa.select(refusals.c.day).where(*_meant(day, reason)).distinct().order_by(refusals.c.day)
        with reading(self._engine) as connection:
            return list(connection.execute(wanted).scalars())

    def refused_by_reason(self) -> dict[str, int]:
        """How many items Customer.io has refused and not accepted since, over all days."""
        return {one.reason: one.items for one in self.open_refusals()}

    def delete_before(self, day: str) -> int:
        """Forgets which events of all earlier days were delivered; gives how many acknowledgements these were.

        The newest entry stays, whatever its day: by it a ledger is told from an older copy. Each day is a transaction, so that
        no writer waits for long.
        """
        with reading(self._engine) as connection:
            days = connection.execute(sa.select(deliveries.c.day).where(deliveries.c.day < day).distinct()).scalars().all()
        gone = 0
        for one in days:
            with writing(self._engine) as transaction:
                old = sa.delete(deliveries).where(deliveries.c.day == one, deliveries.c.id < NEWEST)
                gone += transaction.execute(old).rowcount
        return gone

    def open_refusals(self, day: str | None = None, reason: str | None = None) -> list[OpenRefusals]:
        """The same with the days, the most first; of one day, for one reason, or all."""
        count = sa.func.count()
        columns = (refusals.c.reason, count, sa.func.min(refusals.c.day), sa.func.max(refusals.c.day))
        counted = sa.select(*columns).where(*_meant(day, reason))
        with reading(self._engine) as connection:
            found = connection.execute(counted.group_by(refusals.c.reason).order_by(count.desc(), refusals.c.reason))
            return [OpenRefusals(*row) for row in found]

    def acknowledge(self, day: str, answer: Acknowledgement) -> None:
        """Commits what one answer said. A refusal is closed when its item is accepted, or newer data in its place.

        Raises `delivery_lock.LockLost`, and keeps nothing, where the delivery has lost its lock.
        """
        with writing(self._engine) as transaction:
            any_refusal = self._check_lock(transaction)
            states, new_customers = self._keep_states(transaction, answer.customers)
            if answer.event_ids or new_customers:
                self._execute(transaction, KEEP_DELIVERED, (day, answer.event_ids, new_customers, answer.campaign_events))
            if any_refusal:
                _close_accepted(transaction, day, answer.accepted() + [refusal.item for refusal in answer.refused])
                _close_superseded(transaction, states)
            self._keep_refused(transaction, day, answer.refused)

    def _check_lock(self, transaction: sa.Connection) -> bool:
        """Keeps the row as it is until the transaction ends: who takes the lock next waits for that. Gives whether there is any
        refusal."""
        for_share = " FOR SHARE" if self._engine.dialect.name == "postgresql" else ""
        stored, any_refusal = transaction.exec_driver_sql(HOLDER.format(for_share)).one()
        if self._lock is not None:
            holder, is_held = self._lock
            _check(stored == holder and is_held(transaction))
        return bool(any_refusal)

    def _execute(self, transaction: sa.Connection, statement: str, values: tuple[Any, ...] | list[tuple[Any, ...]]) -> None:
        """Has the driver execute a statement, whose values stand as `?`, once or with each of the values."""
        postgres = self._engine.dialect.name == "postgresql"
        transaction.exec_driver_sql(statement.replace("?", "%s") if postgres else statement, values)

    def _keep_states(self, transaction: sa.Connection, customers: dict[str, bytes]) -> tuple[dict[bytes, bytes], int]:
        """Merges into what stands there; gives what then does, by customer, and how many of them nothing was known of."""
        if not customers:
            return {}, 0
        states = {customer_id(key): state for key, state in customers.items()}
        stored_states = STATES_TO_CHANGE if self._engine.dialect.name == "postgresql" else STATES
        known = transaction.execute(stored_states, _joined(states)).all()
        for customer, stored in known:
            states[customer] = pack(merge(unpack(stored), unpack(states[customer])))
        self._execute(transaction, KEEP_STATE, sorted(states.items()))
        return states, len(states) - len(known)

    def _keep_refused(self, transaction: sa.Connection, day: str, refused: list[Refusal]) -> None:
        now = datetime.now(UTC).replace(tzinfo=None)
        rows = [
            {**vars(refusal), "day": day, "customer": customer_id(refusal.key), "state": pack(refusal.state), "refused_at": now}
            for refusal in refused
        ]
        if rows:
            transaction.execute(self._insert(refusals).on_conflict_do_nothing(), rows)

    def _insert(self, table: sa.Table) -> postgresql.Insert:
        """Both dialects have the same `on_conflict_do_update`, in modules of their own."""
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        insert: postgresql.Insert = dialect.insert(table)
        return insert


def _meant(day: str | None, reason: str | None) -> list[sa.ColumnElement[bool]]:
    """The conditions of refusals of a day, for a reason; None is any."""
    return [column == value for column, value in ((refusals.c.day, day), (refusals.c.reason, reason)) if value is not None]


def _joined(customers: Iterable[bytes]) -> dict[str, bytes | int]:
    """The parameters of `STATES`."""
    return {"customers": b"".join(sorted(customers)), "size": CUSTOMER}


def _check(held: bool) -> None:
    if not held:
        raise LockLost(
            "This delivery has lost its lock on the ledger (CIO_LEDGER_URL), with its database session or its lock file, and"
            " has stopped: what was sent last and not noted is sent again by the next run, and Customer.io knows it by its id."
        )


def _close_accepted(transaction: sa.Connection, day: str, items: list[str]) -> None:
    """An event is the same one on any day; an upsert is the day's."""
    here_or_event = (refusals.c.day == day) | (refusals.c.kind == "event")
    for chunk in chunks(iter(items), CHUNK):
        transaction.execute(sa.delete(refusals).where(refusals.c.item.in_(chunk), here_or_event))


def _close_superseded(transaction: sa.Connection, states: dict[bytes, bytes]) -> None:
    """Closes refused upserts, of any day, all of whose attributes have been set since."""
    columns = (refusals.c.item, refusals.c.day, refusals.c.customer, refusals.c.state)
    for chunk in chunks(iter(states), CHUNK):
        found = transaction.execute(sa.select(*columns).where(refusals.c.customer.in_(chunk), refusals.c.kind == "customer"))
        for row in found.all():
            if is_superseded(unpack(row.state), unpack(states[row.customer])):
                transaction.execute(sa.delete(refusals).where(refusals.c.item == row.item, refusals.c.day == row.day))
