"""The last acknowledged value of each attribute of each customer, as hashes: the queries of the ledger's `customer_states`.

A customer is named by `attribute_state.customer_id`, and a state is packed as by `attribute_state.pack`. `Ledger` passes a
connection, or the transaction of an acknowledgement.
"""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from cio_pipeline.attribute_state import CUSTOMER_HASH_BYTES, merge, pack, unpack
from cio_pipeline.state.database import execute_by_driver

_STATES = """
    WITH RECURSIVE place(n) AS (SELECT 1 UNION ALL SELECT n + :size FROM place WHERE n + :size <= length(:customers))
    SELECT customer, state FROM place CROSS JOIN customer_states WHERE customer = substr(:customers, n, :size)
"""
"""Selects the states of customers. Their ids, of `size` bytes each, are joined in one parameter: thousands would be slow."""

STATES, STATES_TO_CHANGE = sa.text(_STATES), sa.text(f"{_STATES} FOR UPDATE OF customer_states")
UPSERT_STATE = (
    "INSERT INTO customer_states (customer, state) VALUES (?, ?) ON CONFLICT (customer) DO UPDATE SET state = excluded.state"
)


def find(connection: sa.Connection, customers: Iterable[bytes]) -> dict[bytes, bytes]:
    """Returns the states of these customers, by id; one that Customer.io does not know is missing."""
    return dict(connection.execute(STATES, _joined(customers)).all())


def merge_into(transaction: sa.Connection, customers: dict[bytes, bytes]) -> tuple[dict[bytes, bytes], int]:
    """Merges these states into the recorded ones. Returns the results, by customer's id, and the number of new customers."""
    if not customers:
        return {}, 0
    query = STATES_TO_CHANGE if transaction.dialect.name == "postgresql" else STATES
    recorded = transaction.execute(query, _joined(customers)).all()
    merged = {customer: pack(merge(unpack(stored), unpack(customers[customer]))) for customer, stored in recorded}
    states = customers | merged
    execute_by_driver(transaction, UPSERT_STATE, sorted(states.items()))
    return states, len(states) - len(recorded)


def _joined(customers: Iterable[bytes]) -> dict[str, bytes | int]:
    """The parameters of `STATES`."""
    return {"customers": b"".join(sorted(customers)), "size": CUSTOMER_HASH_BYTES}
