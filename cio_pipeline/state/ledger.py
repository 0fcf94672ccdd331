"""What Customer.io has acknowledged, so that a rerun sends only what is new, and a killed run continues where it stopped.

For each request there is one row: the day, the ids of the accepted events, packed as 16 bytes each, and the number of customers
it created. For each customer there is the hash and the time of each attribute's last acknowledged value (`customer_states.py`).
Neither holds personal data. What Customer.io refused is kept with its reason and the item itself (`refusals.py`).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from cio_pipeline.attribute_state import State, customer_id, unpack
from cio_pipeline.packed_ids import ULID_BYTES
from cio_pipeline.state import customer_states, in_flight, refusals
from cio_pipeline.state.acknowledgement import Acknowledgement, record
from cio_pipeline.state.database import CUT_OFF_SECONDS, connect, insert, reading, writing
from cio_pipeline.state.delivery_lock import IsHeld, LockLost, hold_delivery_lock
from cio_pipeline.state.group_commit import GroupCommit
from cio_pipeline.state.ledger_tables import VERSION, deleted_days, deliveries, delivery_lock, metadata
from cio_pipeline.state.refusals import OpenRefusals, Refusal

HOLDER = "SELECT (SELECT holder FROM delivery_lock{0}), EXISTS (SELECT 1 FROM refusals)"
"""The delivery that took the lock last, and whether there is any refusal."""


class LedgerEntry(NamedTuple):
    """Identifies an acknowledgement in any copy of a ledger."""

    number: int
    day: str
    first_id: str
    """The id of its first event, in hex."""


OF_EVENTS = sa.func.length(deliveries.c.event_ids) > 0
NEWEST = sa.select(deliveries.c.id).where(OF_EVENTS).order_by(deliveries.c.id.desc()).limit(1).scalar_subquery()
"""The last acknowledgement of events. Others only have new customers."""


@dataclass(frozen=True)
class DayTotals:
    """What all runs together have done for a day, as numbers."""

    events: int = 0
    """The delivered events, each counted once."""
    new_customers: int = 0
    """The customers that were created."""
    campaign_events: int = 0
    """The delivered events that were young enough to start campaigns."""
    refused: int = 0
    """The items that Customer.io has refused and not accepted since."""
    refused_events: int = 0
    """The events among these."""


class Ledger:
    """The ledger in the database at an SQLAlchemy URL. Its methods raise `database.DatabaseError` if that cannot be used."""

    def __init__(self, url: str, cut_off_seconds: int = CUT_OFF_SECONDS) -> None:
        self._engine = connect(url, metadata, VERSION, cut_off_seconds)
        self._lock: tuple[str, IsHeld] | None = None
        self._answers = GroupCommit(self._commit)

    def close(self) -> None:
        """Closes this process's connections to the database. The next query opens a new one."""
        self._engine.dispose()

    @contextmanager
    def hold_delivery_lock(self, waiting: Callable[[], None]) -> Iterator[None]:
        """Holds the delivery lock during the block: one delivery at a time, so that the ledger does not change between reading
        it and sending, and one rate limit is enough.

        waiting: called once if it has to wait. The lock may be lost with its session or file. From then on `acknowledge` and
        `check_lock` raise `LockLost`; `acknowledge` also does if another delivery has taken the lock since.
        """
        with hold_delivery_lock(self._engine, waiting) as is_held:
            holder = uuid.uuid4().hex
            row = {"id": 1, "holder": holder}
            with writing(self._engine) as transaction:
                taken = insert(transaction, delivery_lock).values(row)
                transaction.execute(taken.on_conflict_do_update(index_elements=["id"], set_=row))
                _require_held(is_held(transaction))
            self._lock = (holder, is_held)
            try:
                yield
            finally:
                self._lock = None

    def check_lock(self) -> None:
        """Raises `delivery_lock.LockLost` if the delivery has lost its lock, or took none. To be called before each request.

        `acknowledge` checks whether another delivery has taken it since.
        """
        _require_held(self._lock is not None and self._lock[1](None))

    @contextmanager
    def sending(self, day: str, *, all_of_it: bool) -> Iterator[None]:
        """To be held while something of the day is sent. If the block fails, or the process is killed, its upserts stay
        `in_flight`, until another block that sends all of the day succeeds."""
        with reading(self._engine) as connection:
            was_cut_off = in_flight.has(connection, day)
        yield
        if all_of_it or not was_cut_off:
            with writing(self._engine) as transaction:
                if was_cut_off and (new_customers := in_flight.settle(transaction, day)):
                    row = {"day": day, "event_ids": b"", "new_customers": new_customers, "campaign_events": 0}
                    transaction.execute(sa.insert(deliveries), row)
                in_flight.delete(transaction, day)

    def put_in_flight(self, day: str, states: dict[str, bytes]) -> None:
        """Commits which upserts are about to be sent: packed states by customer's key, as in `Acknowledgement.customers`.

        Raises `delivery_lock.LockLost` if the delivery has lost its lock.
        """
        self.check_lock()
        if states:
            with writing(self._engine) as transaction:
                in_flight.keep(transaction, day, {customer_id(key): state for key, state in states.items()})

    def in_flight(self) -> dict[str, dict[bytes, bytes]]:
        """Returns the upserts that Customer.io may have accepted although it is not recorded, because their delivery was cut
        off: packed states, by day and customer's id."""
        with reading(self._engine) as connection:
            return in_flight.find(connection)

    def delivered(self, day: str) -> npt.NDArray[np.bytes_]:
        """Returns the ids of the day's acknowledged events, packed by `pack_ids`, sorted, each once."""
        with reading(self._engine) as connection:
            packed = connection.execute(sa.select(deliveries.c.event_ids).where(deliveries.c.day == day)).scalars()
            ids = np.sort(np.frombuffer(b"".join(packed), dtype="S16"))
        return ids[np.append(np.ones(min(1, len(ids)), bool), ids[1:] != ids[:-1])]

    def newest(self) -> LedgerEntry | None:
        """Returns the last acknowledgement of events, or None if there is none."""
        return self._entry(NEWEST)

    def has(self, entry: LedgerEntry) -> bool:
        """Returns whether this ledger has the acknowledgement."""
        return self._entry(entry.number) == entry

    def _entry(self, number: int | sa.ScalarSelect[int]) -> LedgerEntry | None:
        columns = (deliveries.c.id, deliveries.c.day, sa.func.substr(deliveries.c.event_ids, 1, 16))
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(*columns).where(deliveries.c.id == number)).first()
        return None if row is None else LedgerEntry(row[0], row[1], bytes(row[2] or b"").hex())

    def totals(self, day: str) -> DayTotals:
        """Returns what all runs together have done for the day."""
        counts = (sa.func.coalesce(sa.func.sum(deliveries.c[name]), 0) for name in ("new_customers", "campaign_events"))
        with reading(self._engine) as connection:
            new_customers, campaign_events = connection.execute(sa.select(*counts).where(deliveries.c.day == day)).one()
            refused = refusals.count_by_kind(connection, day)
        events = len(self.delivered(day))
        return DayTotals(events, int(new_customers), int(campaign_events), sum(refused.values()), refused["event"])

    def events_delivered(self, days: list[str]) -> dict[str, int]:
        """Returns the number of delivered events by day, without reading their ids: one that was sent twice counts twice."""
        size = sa.func.sum(sa.func.length(deliveries.c.event_ids))
        sizes = sa.select(deliveries.c.day, size).where(deliveries.c.day.in_(days)).group_by(deliveries.c.day)
        with reading(self._engine) as connection:
            return {row[0]: int(row[1]) // ULID_BYTES for row in connection.execute(sizes)}

    def new_customers(self, day: str) -> int:
        """Returns the number of customers that the day's deliveries have created."""
        created = sa.select(sa.func.coalesce(sa.func.sum(deliveries.c.new_customers), 0)).where(deliveries.c.day == day)
        with reading(self._engine) as connection:
            return int(connection.execute(created).scalar_one())

    def events_refused(self, days: list[str]) -> dict[str, int]:
        """Returns the number of refused events by day; a day without any is missing."""
        with reading(self._engine) as connection:
            return refusals.count_events(connection, days)

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        """Returns the acknowledged attributes of these customers, by key; one that Customer.io does not know is missing."""
        return {key: unpack(state) for key, state in self.packed_states(keys).items()}

    def packed_states(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Returns the same, packed as by `attribute_state.pack`."""
        by_id = {customer_id(key): key for key in keys}
        with reading(self._engine) as connection:
            states = customer_states.find(connection, by_id)
        return {by_id[customer]: state for customer, state in states.items()}

    def unknown(self, keys: Iterable[str]) -> list[str]:
        """Returns the keys of which Customer.io has acknowledged nothing: sending them creates new customers."""
        by_id = {customer_id(key): key for key in keys}
        with reading(self._engine) as connection:
            known = customer_states.find(connection, by_id)
        return [key for customer, key in by_id.items() if customer not in known]

    def refused(self, day: str) -> dict[str, Refusal]:
        """Returns the open refusals of the day, by item: what Customer.io has refused and not accepted since."""
        return {refusal.item_id: refusal for refusal in self.refusals(day).get(day, [])}

    def refusals(self, day: str | None = None, reason: str | None = None, limit: int | None = None) -> dict[str, list[Refusal]]:
        """Returns the open refusals by day, oldest first: of one day, for one reason, or all; at most `limit` of them."""
        with reading(self._engine) as connection:
            return refusals.find(connection, day, reason, limit)

    def refused_items(self, day: str | None = None, reason: str | None = None) -> set[tuple[str, str]]:
        """Returns the day and the id of each refused item: of one day, for one reason, or all."""
        with reading(self._engine) as connection:
            return refusals.days_and_items(connection, day, reason)

    def open_refusals(self, day: str | None = None, reason: str | None = None) -> list[OpenRefusals]:
        """Returns the number of open refusals by reason, the most frequent first."""
        with reading(self._engine) as connection:
            return refusals.count_by_reason(connection, day, reason)

    def days_refused(self, day: str | None = None, reason: str | None = None) -> list[str]:
        """Returns the days that have open refusals, in order."""
        with reading(self._engine) as connection:
            return refusals.days(connection, day, reason)

    def refused_by_reason(self) -> dict[str, int]:
        """Returns the number of open refusals of all days, by reason."""
        return {by_reason.reason: by_reason.number for by_reason in self.open_refusals()}

    def delete_before(self, day: str) -> int:
        """Forgets which events of earlier days were delivered, but not of which days. Returns the number of acknowledgements
        that were deleted.

        The newest entry stays, whatever its day, as it distinguishes a ledger from an older copy. Each day has its own
        transaction, so that no writer waits for long.
        """
        with reading(self._engine) as connection:
            days = connection.execute(sa.select(deliveries.c.day).where(deliveries.c.day < day).distinct()).scalars().all()
        deleted = 0
        for earlier in days:
            with writing(self._engine) as transaction:
                entries = sa.delete(deliveries).where(deliveries.c.day == earlier, deliveries.c.id < NEWEST)
                deleted += transaction.execute(entries).rowcount
                transaction.execute(insert(transaction, deleted_days).values(day=earlier).on_conflict_do_nothing())
        return deleted

    def deleted_days(self, days: list[str]) -> list[str]:
        """Returns those of the days of which it has forgotten what was delivered."""
        with reading(self._engine) as connection:
            known = set(connection.execute(sa.select(deleted_days.c.day)).scalars())
        return [day for day in days if day in known]

    def acknowledge(self, day: str, answer: Acknowledgement) -> None:
        """Commits what one answer says, perhaps together with answers of other threads. A refusal is closed when its item, or
        newer data instead, is accepted.

        Raises `delivery_lock.LockLost`, and commits nothing, if the delivery has lost its lock.
        """
        self._answers.add((day, answer))

    def _commit(self, answers: list[tuple[str, Acknowledgement]]) -> None:
        for_share = " FOR SHARE" if self._engine.dialect.name == "postgresql" else ""
        with writing(self._engine) as transaction:
            holder, has_refusals = transaction.exec_driver_sql(HOLDER.format(for_share)).one()
            self._require_lock(holder, transaction)
            for day, answer in answers:
                record(transaction, day, answer, has_refusals)
                has_refusals = has_refusals or bool(answer.refused)

    def _require_lock(self, stored_holder: str | None, transaction: sa.Connection) -> None:
        """Raises `LockLost` if this delivery has lost its lock, or another has taken it. None can take it until the transaction
        ends."""
        if self._lock is not None:
            holder, is_held = self._lock
            _require_held(stored_holder == holder and is_held(transaction))


def _require_held(is_held: bool) -> None:
    if not is_held:
        raise LockLost(
            "This delivery has lost its lock on the ledger (CIO_LEDGER_URL), with its database session or its lock file, and"
            " has stopped: what was sent last and not recorded is sent again by the next run, and Customer.io ignores the copy."
        )
