"""What Customer.io has acknowledged, so that a rerun sends only what is new and a killed run goes on where it stopped.

Per partition the ids of the events it took, packed as 16 bytes each, one row a request. Per customer each attribute's last
acknowledged value (a hash) and time, 16 bytes each. Neither holds anybody's data. What Customer.io refused stands here too,
with its reason and the item itself.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cio_pipeline.database import chunks, connect
from cio_pipeline.ledger.state import State, customer_id, merge, pack, unpack

metadata = sa.MetaData()

deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("day", sa.String(10), nullable=False, index=True),
    sa.Column("event_uuids", sa.LargeBinary, nullable=False),
)

customer_states = sa.Table(
    "customer_states",
    metadata,
    sa.Column("customer", sa.LargeBinary(16), primary_key=True),
    sa.Column("state", sa.LargeBinary, nullable=False),
)

refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("day", sa.String(10), primary_key=True),
    sa.Column("item", sa.String, primary_key=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("reason", sa.String, nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("refused_at", sa.DateTime, nullable=False),
)

CHUNK = 500


@dataclass(frozen=True)
class Refusal:
    """An item that Customer.io refused.

    item: the event's uuid, or the customer's key and part; kind: `event` or `customer`; reason: Customer.io's word for it
    and the field; detail: its whole message, which may quote the data; operation: what was sent.
    """

    item: str
    kind: str
    reason: str
    detail: str
    operation: str


@dataclass
class Acknowledgement:
    """What one answer of Customer.io settles: the events and the customers' attributes it took, the items taken and refused."""

    event_uuids: list[str] = field(default_factory=list)
    customers: dict[str, State] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)
    refused: list[Refusal] = field(default_factory=list)


class Ledger:
    """The ledger in the database at an SQLAlchemy URL."""

    def __init__(self, url: str) -> None:
        self._engine = connect(url, metadata)

    def delivered(self, day: str) -> Any:
        """The uuids of the day's events that Customer.io has acknowledged: a sorted numpy array of 16-byte strings."""
        with self._engine.connect() as connection:
            packed = connection.execute(sa.select(deliveries.c.event_uuids).where(deliveries.c.day == day)).scalars()
            return np.unique(np.frombuffer(b"".join(packed), dtype="S16"))

    def states(self, keys: Iterable[str]) -> dict[str, State]:
        """What Customer.io holds of these customers; one it has not heard of is missing."""
        by_id = {customer_id(key): key for key in keys}
        with self._engine.connect() as connection:
            return {
                by_id[row.customer]: unpack(row.state)
                for chunk in chunks(iter(by_id), CHUNK)
                for row in connection.execute(sa.select(customer_states).where(customer_states.c.customer.in_(chunk)))
            }

    def refused(self, day: str) -> dict[str, Refusal]:
        """What Customer.io refused of the day, by item."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(refusals).where(refusals.c.day == day)).all()
        return {row.item: Refusal(row.item, row.kind, row.reason, row.detail, row.operation) for row in rows}

    def refused_by_reason(self) -> dict[str, int]:
        """How many items Customer.io has refused and not accepted since, over all days."""
        counted = sa.select(refusals.c.reason, sa.func.count()).group_by(refusals.c.reason)
        with self._engine.connect() as connection:
            return {row[0]: row[1] for row in connection.execute(counted)}

    def acknowledge(self, day: str, answer: Acknowledgement) -> None:
        """Commits what one answer settled. A refusal that was accepted now is closed."""
        with self._engine.begin() as transaction:
            if answer.event_uuids:
                packed = b"".join(uuid.UUID(value).bytes for value in answer.event_uuids)
                transaction.execute(sa.insert(deliveries), {"day": day, "event_uuids": packed})
            self._keep_states(transaction, answer.customers)
            self._keep_refusals(transaction, day, answer)

    def _keep_states(self, transaction: sa.Connection, customers: dict[str, State]) -> None:
        """Merges into what stands there: another run may have written since this one looked."""
        for chunk in chunks(iter(customers.items()), CHUNK):
            ids = {customer_id(key): state for key, state in chunk}
            found = transaction.execute(sa.select(customer_states).where(customer_states.c.customer.in_(ids)).with_for_update())
            standing = {row.customer: unpack(row.state) for row in found}
            rows = [
                {"customer": customer, "state": pack(merge(standing.get(customer, {}), state))}
                for customer, state in ids.items()
            ]
            insert = self._upsert(customer_states)
            transaction.execute(
                insert.on_conflict_do_update(index_elements=["customer"], set_={"state": insert.excluded.state}), rows
            )

    def _keep_refusals(self, transaction: sa.Connection, day: str, answer: Acknowledgement) -> None:
        settled = answer.accepted + [refusal.item for refusal in answer.refused]
        for chunk in chunks(iter(settled), CHUNK):
            transaction.execute(sa.delete(refusals).where(refusals.c.day == day, refusals.c.item.in_(chunk)))
        now = datetime.now(timezone.utc).replace(tzinfo=None)
        rows = [{"day": day, "refused_at": now, **vars(refusal)} for refusal in answer.refused]
        if rows:
            transaction.execute(self._upsert(refusals).on_conflict_do_nothing(), rows)

    def _upsert(self, table: sa.Table) -> postgresql.Insert:
        """Both dialects have the same `on_conflict_do_update`, in modules of their own."""
        dialect = postgresql if self._engine.dialect.name == "postgresql" else sqlite
        insert: postgresql.Insert = dialect.insert(table)
        return insert
