"""What Customer.io has acknowledged, so that a rerun sends only what is new, and a killed run continues where it stopped.

For each request, one row: the day, the ids of the events that were accepted, packed as 16 bytes each, and how many customers it
created. For each customer: the hash and the time of each attribute's last acknowledged value. Neither holds personal data. What
Customer.io refused is here too (`refusals.py`), with its reason and the item itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import sqlalchemy as sa

from cio_pipeline.attribute_state import CUSTOMER_HASH_BYTES, State, customer_id, merge, pack, unpack
from cio_pipeline.packed_ids import ULID_BYTES, id_halves
from cio_pipeline.state import refusals
from cio_pipeline.state.database import CUT_OFF_SECONDS, connect, insert, reading, writing
from cio_pipeline.state.delivery_lock import IsHeld, LockLost, hold_delivery_lock
from cio_pipeline.state.ledger_tables import VERSION, deliveries, delivery_lock, metadata
from cio_pipeline.state.refusals import OpenRefusals, Refusal

_STATES = """
    WITH RECURSIVE place(n) AS (SELECT 1 UNION ALL SELECT n + :size FROM place WHERE n + :size <= length(:customers))
    SELECT customer, state FROM place CROSS JOIN customer_states WHERE customer = substr(:customers, n, :size)
"""
"""The states of customers whose ids, of `size` bytes each, are joined in one parameter: thousands of parameters are slow."""

STATES, STATES_TO_CHANGE = sa.text(_STATES), sa.text(f"{_STATES} FOR UPDATE OF customer_states")
UPSERT_STATE = (
    "INSERT INTO customer_states (customer, state) VALUES (?, ?) ON CONFLICT (customer) DO UPDATE SET state = excluded.state"
)
INSERT_DELIVERY = "INSERT INTO deliveries (day, event_uuids, new_customers, campaign_events) VALUES (?, ?, ?, ?)"
"""Passed to the driver without SQLAlchemy's processing, as each request needs one or two of them, with up to thousands of
rows."""

HOLDER = "SELECT (SELECT holder FROM delivery_lock{0}), EXISTS (SELECT 1 FROM refusals)"
"""Who took the lock last, and whether there is any refusal."""


class Entry(NamedTuple):
    """What identifies an acknowledgement in any copy of a ledger: its number, its day, and its first event's id."""

    number: int
    day: str
    first_id: str


@dataclass
class Acknowledgement:
    """What one answer of Customer.io acknowledges.

    event_ids: the accepted events, packed by `pack_ids` and joined; campaign_events: how many of these were new to Customer.io
    and young enough to start campaigns; customers: the accepted attributes, by key, as a packed state (`attribute_state.pack`)
    or several of different attributes, joined; accepted: gives the names of the accepted items, and is called only where they
    are needed; refused: the refused items.
    """

    event_ids: bytes = b""
    campaign_events: int = 0
    customers: dict[str, bytes] = field(default_factory=dict)
    accepted: Callable[[], list[str]] = list
    refused: list[Refusal] = field(default_factory=list)


OF_EVENTS = sa.func.length(deliveries.c.event_uuids) > 0
NEWEST = sa.select(deliveries.c.id).where(OF_EVENTS).order_by(deliveries.c.id.desc()).limit(1).scalar_subquery()
"""The last acknowledgement of events. Others only have new customers."""


@dataclass(frozen=True)
class DayTotals:
    """What all runs together have done of a day.

    events: delivered, each counted once; new_customers: created; campaign_events: young enough to start campaigns; refused:
    items that Customer.io has refused and not accepted since; refused_events: the events among these.
    """

    events: int = 0
    new_customers: int = 0
    campaign_events: int = 0
    refused: int = 0
    refused_events: int = 0


class Ledger:
    """The ledger in the database at an SQLAlchemy URL. Its methods raise `database.DatabaseError` if that cannot be used."""

    def __init__(self, url: str, cut_off_seconds: int = CUT_OFF_SECONDS) -> None:
        self._engine = connect(url, metadata, VERSION, cut_off_seconds)
        self._lock: tuple[str, IsHeld] | None = None

    def close(self) -> None:
        """Closes this process's connections to the database. The next query opens a new one."""
        self._engine.dispose()

    @contextmanager
    def hold_delivery_lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        """One delivery at a time, so that the ledger does not change between reading it and sending, and one rate limit holds.

        The lock may be lost with its session or file. From then on `acknowledge` and `check_lock` raise `LockLost`, also
        because the delivery that took the lock next has replaced this one's name. waiting: called once if it has to wait.
        """
        with hold_delivery_lock(self._engine, waiting) as is_held:
            holder = uuid.uuid4().hex
            row = {"id": 1, "holder": holder}
            with writing(self._engine) as transaction:
                taken = insert(transaction, delivery_lock).values(row)
                transaction.execute(taken.on_conflict_do_update(index_elements=["id"], set_=row))
                _refuse_lost(is_held(transaction))
            self._lock = (holder, is_held)
            try:
                yield
            finally:
                self._lock = None

    def check_lock(self) -> None:
        """To be called before each request. Raises `delivery_lock.LockLost` if the delivery has lost its lock.

        Whether another delivery has taken it since is checked by `acknowledge`.
        """
        if self._lock is not None:
            _, is_held = self._lock
            _refuse_lost(is_held(None))

    def delivered(self, day: str) -> Any:
        """The ids of the day's events that Customer.io has acknowledged: packed by `pack_ids` (numpy), sorted, each once."""
        with reading(self._engine) as connection:
            packed = connection.execute(sa.select(deliveries.c.event_uuids).where(deliveries.c.day == day)).scalars()
            ids = np.frombuffer(b"".join(packed), dtype="S16")
        first, last = id_halves(ids)
        order = np.lexsort((last, first))
        again = (np.diff(first[order]) == 0) & (np.diff(last[order]) == 0)
        return ids[order][np.append(np.ones(min(1, len(ids)), bool), ~again)]

    def newest(self) -> Entry | None:
        """The last acknowledgement of events; None if there is none."""
        return self._entry(NEWEST)

    def has(self, entry: Entry) -> bool:
        """Whether this ledger has the acknowledgement."""
        return self._entry(entry.number) == entry

    def _entry(self, number: Any) -> Entry | None:
        columns = (deliveries.c.id, deliveries.c.day, sa.func.substr(deliveries.c.event_uuids, 1, 16))
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(*columns).where(deliveries.c.id == number)).first()
        return None if row is None else Entry(row[0], row[1], bytes(row[2] or b"").hex())

    def totals(self, day: str) -> DayTotals:
        """What all runs together have done of the day."""
        counts = (sa.func.coalesce(sa.func.sum(deliveries.c[name]), 0) for name in ("new_customers", "campaign_events"))
        with reading(self._engine) as connection:
            new_customers, campaign_events = connection.execute(sa.select(*counts).where(deliveries.c.day == day)).one()
            refused = refusals.count_by_kind(connection, day)
        events = len(self.delivered(day))
        return DayTotals(events, int(new_customers), int(campaign_events), sum(refused.values()), refused["event"])

    def events_delivered(self, days: list[str]) -> dict[str, int]:
        """How many events of each of the days were delivered, without reading their ids: one that was sent twice counts
        twice."""
        size = sa.func.sum(sa.func.length(deliveries.c.event_uuids))
        sizes = sa.select(deliveries.c.day, size).where(deliveries.c.day.in_(days)).group_by(deliveries.c.day)
        with reading(self._engine) as connection:
            return {row[0]: int(row[1]) // ULID_BYTES for row in connection.execute(sizes)}

    def new_customers(self, day: str) -> int:
        """How many customers the day's deliveries have created."""
        created = sa.select(sa.func.coalesce(sa.func.sum(deliveries.c.new_customers), 0)).where(deliveries.c.day == day)
        with reading(self._engine) as connection:
            return int(connection.execute(created).scalar_one())

    def events_refused(self, days: list[str]) -> dict[str, int]:
        """How many events of each of the days Customer.io has refused and not accepted since; a day without any is missing."""
        with reading(self._engine) as connection:
            return refusals.count_events(connection, days)

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        """The acknowledged attributes of these customers, by key; one that Customer.io does not know is missing."""
        return {key: unpack(state) for key, state in self.packed_states(keys).items()}

    def packed_states(self, keys: Iterable[str]) -> dict[str, bytes]:
        """The same, packed as by `attribute_state.pack`."""
        by_id = {customer_id(key): key for key in keys}
        with reading(self._engine) as connection:
            rows = connection.execute(STATES, _joined(by_id))
            return {by_id[customer]: state for customer, state in rows}

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """The keys of which Customer.io has acknowledged nothing: sending them creates new customers."""
        by_id = {customer_id(key): key for key in keys}
        with reading(self._engine) as connection:
            for customer, _ in connection.execute(STATES, _joined(by_id)):
                del by_id[customer]
        return list(by_id.values())

    def refused(self, day: str) -> dict[str, Refusal]:
        """What Customer.io refused of the day and has not accepted since, by item."""
        return {refusal.item: refusal for refusal in self.refusals(day).get(day, [])}

    def refusals(self, day: str | None = None, reason: str | None = None, limit: int | None = None) -> dict[str, list[Refusal]]:
        """What Customer.io refused and has not accepted since, by day, oldest first; of one day, for one reason, or all; at
        most `limit` of them."""
        with reading(self._engine) as connection:
            return refusals.find(connection, day, reason, limit)

    def open_refusals(self, day: str | None = None, reason: str | None = None) -> list[OpenRefusals]:
        """The same, counted by reason, the most frequent first."""
        with reading(self._engine) as connection:
            return refusals.count_by_reason(connection, day, reason)

    def days_refused(self, day: str | None = None, reason: str | None = None) -> list[str]:
        """The days that have such refusals, in order."""
        with reading(self._engine) as connection:
            return refusals.days(connection, day, reason)

    def refused_by_reason(self) -> dict[str, int]:
        """How many items Customer.io has refused and not accepted since, over all days, by reason."""
        return {one.reason: one.items for one in self.open_refusals()}

    def delete_before(self, day: str) -> int:
        """Deletes which events of all earlier days were delivered; returns how many acknowledgements that were.

        The newest entry stays, whatever its day, as it distinguishes a ledger from an older copy. Each day is a transaction of
        its own, so that no writer waits for long.
        """
        with reading(self._engine) as connection:
            days = connection.execute(sa.select(deliveries.c.day).where(deliveries.c.day < day).distinct()).scalars().all()
        deleted = 0
        for earlier in days:
            with writing(self._engine) as transaction:
                entries = sa.delete(deliveries).where(deliveries.c.day == earlier, deliveries.c.id < NEWEST)
                deleted += transaction.execute(entries).rowcount
        return deleted

    def acknowledge(self, day: str, answer: Acknowledgement) -> None:
        """Commits what one answer says. A refusal is closed when its item, or newer data instead, is accepted.

        Raises `delivery_lock.LockLost`, and commits nothing, where the delivery has lost its lock.
        """
        with writing(self._engine) as transaction:
            any_refusal = self._check_lock(transaction)
            states, new_customers = self._merge_states(transaction, answer.customers)
            if answer.event_ids or new_customers:
                self._execute(transaction, INSERT_DELIVERY, (day, answer.event_ids, new_customers, answer.campaign_events))
            if any_refusal:
                refusals.close(transaction, day, answer.accepted() + [refusal.item for refusal in answer.refused])
                refusals.close_superseded(transaction, states)
            refusals.keep(transaction, day, answer.refused)

    def _check_lock(self, transaction: sa.Connection) -> bool:
        """Raises `LockLost` if another delivery has taken the lock. None can take it until the transaction ends. Returns
        whether there is any refusal."""
        for_share = " FOR SHARE" if self._engine.dialect.name == "postgresql" else ""
        stored, any_refusal = transaction.exec_driver_sql(HOLDER.format(for_share)).one()
        if self._lock is not None:
            holder, is_held = self._lock
            _refuse_lost(stored == holder and is_held(transaction))
        return bool(any_refusal)

    def _execute(self, transaction: sa.Connection, statement: str, values: tuple[Any, ...] | list[tuple[Any, ...]]) -> None:
        """Executes a statement with `?` for its values by the driver: once, or with each of a list of values."""
        postgres = self._engine.dialect.name == "postgresql"
        transaction.exec_driver_sql(statement.replace("?", "%s") if postgres else statement, values)

    def _merge_states(self, transaction: sa.Connection, customers: dict[str, bytes]) -> tuple[dict[bytes, bytes], int]:
        """Merges packed states, by key, into the recorded ones. Returns the results by customer's id, and how many customers
        are new."""
        if not customers:
            return {}, 0
        states = {customer_id(key): state for key, state in customers.items()}
        query = STATES_TO_CHANGE if self._engine.dialect.name == "postgresql" else STATES
        recorded = transaction.execute(query, _joined(states)).all()
        for customer, stored in recorded:
            states[customer] = pack(merge(unpack(stored), unpack(states[customer])))
        self._execute(transaction, UPSERT_STATE, sorted(states.items()))
        return states, len(states) - len(recorded)


def _joined(customers: Iterable[bytes]) -> dict[str, bytes | int]:
    """The parameters of `STATES`."""
    return {"customers": b"".join(sorted(customers)), "size": CUSTOMER_HASH_BYTES}


def _refuse_lost(is_held: bool) -> None:
    if not is_held:
        raise LockLost(
            "This delivery has lost its lock on the ledger (CIO_LEDGER_URL), with its database session or its lock file, and"
            " has stopped: what was sent last and not recorded is sent again by the next run, and Customer.io ignores the copy."
        )
