"""The ledger's tables, and how those of earlier versions become today's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa

from cio_pipeline.connector.jsontext import read_object, write
from cio_pipeline.database import Migrations, Text, chunks
from cio_pipeline.ledger.state import CUSTOMER, VALUE, State, customer_id, name_hash, pack, state_time, value_hash

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
    sa.Column("customer", sa.LargeBinary(CUSTOMER), primary_key=True),
    sa.Column("state", sa.LargeBinary, nullable=False),
)

refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("item", sa.String(50), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True, index=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("customer", sa.LargeBinary(CUSTOMER), nullable=False, index=True),
    sa.Column("key", Text, nullable=False),
    sa.Column("call", sa.String(8), nullable=False),
    sa.Column("state", sa.LargeBinary, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("detail", Text, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("refused_at", sa.DateTime, nullable=False),
)

CHUNK = 1000


def _compact_states(transaction: sa.Connection) -> None:
    """16 bytes an attribute and customer become 11 and 12."""
    old = sa.table("customer_states", sa.column("customer", sa.LargeBinary), sa.column("state", sa.LargeBinary))
    is_old = sa.func.length(old.c.customer) == 16
    change = (
        sa.update(old)
        .where(old.c.customer == sa.bindparam("was"))
        .values(customer=sa.bindparam("customer"), state=sa.bindparam("state"))
    )
    while rows := transaction.execute(sa.select(old).where(is_old).limit(CHUNK)).all():
        short = [{"was": row[0], "customer": row[0][:CUSTOMER], "state": pack(dict(_old_records(row[1])))} for row in rows]
        transaction.execute(change, short)


def _old_records(packed: bytes) -> Iterator[tuple[bytes, tuple[bytes, int]]]:
    for start in range(0, len(packed), 16):
        record = packed[start : start + 16]
        yield record[:5], (record[5 : 5 + VALUE], int.from_bytes(record[12:], "big"))


def _complete_refusals(transaction: sa.Connection) -> None:
    """A refusal holds what it takes to send it again. Events by the v1 call did not say whose they are: they are forgotten,
    and the next run of their day sends them."""
    old = sa.text("SELECT day, item, kind, reason, detail, operation, refused_at FROM refusals")
    rows = [dict(row._mapping) for row in transaction.execute(old.columns(refused_at=sa.DateTime))]
    transaction.execute(sa.text("DROP TABLE refusals"))
    refusals.create(transaction)
    for chunk in chunks((completed for row in rows for completed in _completed(row)), CHUNK):
        transaction.execute(sa.insert(refusals), chunk)


def _completed(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    operation = read_object(row["operation"])
    for kind, value in operation.get("identifiers", {}).items():
        key, state, item = f"{kind}:{value}", b"", row["item"]
        if row["kind"] == "customer":
            state = pack(_state_of(operation))
            item = customer_item(key, int(item.rpartition("#")[2]))
        yield {**row, "item": item, "customer": customer_id(key), "key": key, "call": "batch", "state": state}


def _state_of(operation: dict[str, Any]) -> State:
    at = state_time(operation["timestamp"])
    return {name_hash(name): (value_hash(write(value)), at) for name, value in operation["attributes"].items()}


def customer_item(key: str, part: int) -> str:
    """What an upsert is called among the refusals."""
    return f"{customer_id(key).hex()}#{part}"


migrations = Migrations("ledger", (_compact_states, _complete_refusals))
