"""The ledger's tables."""

from __future__ import annotations

import sqlalchemy as sa

from cio_pipeline.customer_state import CUSTOMER, customer_id
from cio_pipeline.state.database import SchemaVersion, Text

VERSION = SchemaVersion("ledger", 4)
"""A change of these tables, or of what their bytes mean, needs the next number: there are no migrations."""

metadata = sa.MetaData()


class Bytes(sa.LargeBinary):
    """Bytes as they are: the drivers of both databases take and give them, and SQLAlchemy's own conversion is dear."""

    def bind_processor(self, dialect: sa.Dialect) -> None:
        """None is needed."""

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        """None is needed."""


deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("day", sa.String(10), nullable=False, index=True),
    sa.Column("event_uuids", Bytes, nullable=False),
    sa.Column("new_customers", sa.Integer, nullable=False),
    sa.Column("campaign_events", sa.Integer, nullable=False),
)
"""A row a request: the events that it brought, packed; how many customers it made; and how many of the events were young enough
to start campaigns."""

customer_states = sa.Table(
    "customer_states",
    metadata,
    sa.Column("customer", Bytes(CUSTOMER), primary_key=True),
    sa.Column("state", Bytes, nullable=False),
)

refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("item", sa.String(50), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True, index=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("customer", Bytes(CUSTOMER), nullable=False, index=True),
    sa.Column("key", Text, nullable=False),
    sa.Column("call", sa.String(8), nullable=False),
    sa.Column("state", Bytes, nullable=False),
    sa.Column("reason", Text, nullable=False),
    sa.Column("detail", Text, nullable=False),
    sa.Column("operation", sa.Text, nullable=False),
    sa.Column("refused_at", sa.DateTime, nullable=False),
)

delivery_lock = sa.Table(
    "delivery_lock",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("holder", sa.String(32), nullable=False),
)
"""One row: which delivery took the lock last. Every acknowledgement checks that it is still its own."""

CHUNK = 1000


def customer_item(key: str, part: int) -> str:
    """What an upsert is called among the refusals."""
    return f"{customer_id(key).hex()}#{part}"
