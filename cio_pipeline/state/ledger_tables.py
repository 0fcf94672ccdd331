"""The ledger's tables."""

from __future__ import annotations

import sqlalchemy as sa

from cio_pipeline.attribute_state import CUSTOMER_HASH_BYTES
from cio_pipeline.state.database import SchemaVersion, Text

VERSION = SchemaVersion("ledger", 7)
"""To be increased when these tables, or what their bytes mean, change: there are no migrations."""

metadata = sa.MetaData()


class Bytes(sa.LargeBinary):
    """Bytes without SQLAlchemy's conversion, which is slow: the drivers of both databases accept and return bytes."""

    def bind_processor(self, dialect: sa.Dialect) -> None:
        """Returns None: values are not converted."""

    def result_processor(self, dialect: sa.Dialect, coltype: object) -> None:
        """Returns None: values are not converted."""


deliveries = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("day", sa.String(10), nullable=False, index=True),
    sa.Column("event_ids", Bytes, nullable=False),
    sa.Column("new_customers", sa.Integer, nullable=False),
    sa.Column("campaign_events", sa.Integer, nullable=False),
)
"""One row per request: the ids of its accepted events in Customer.io, packed; the number of customers that it created;
and the number of its events that were young enough to start campaigns."""

customer_states = sa.Table(
    "customer_states",
    metadata,
    sa.Column("customer", Bytes(CUSTOMER_HASH_BYTES), primary_key=True),
    sa.Column("state", Bytes, nullable=False),
)

refusals = sa.Table(
    "refusals",
    metadata,
    sa.Column("item_id", sa.String(50), primary_key=True),
    sa.Column("day", sa.String(10), primary_key=True, index=True),
    sa.Column("kind", sa.String(8), nullable=False),
    sa.Column("customer", Bytes(CUSTOMER_HASH_BYTES), nullable=False, index=True),
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
"""One row: the delivery that took the lock last. Every acknowledgement checks that this is still the one that sends."""

upserts_in_flight = sa.Table(
    "upserts_in_flight",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("day", sa.String(10), nullable=False, index=True),
    sa.Column("states", Bytes, nullable=False),
)
"""Upserts that a delivery was about to send, several in each row: a map of customers to packed states, as MessagePack. They
stay if the delivery is cut off, as Customer.io may have accepted some that are not recorded."""

deleted_days = sa.Table("deleted_days", metadata, sa.Column("day", sa.String(10), primary_key=True))
"""The days of which `CIO_LEDGER_DAYS` has deleted what was delivered."""

CHUNK = 1000
