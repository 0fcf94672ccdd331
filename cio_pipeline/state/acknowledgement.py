"""What is recorded at once: what one answer of Customer.io acknowledges, or what need not be sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import sqlalchemy as sa

from cio_pipeline.attribute_state import customer_id
from cio_pipeline.state import customer_states, refusals
from cio_pipeline.state.database import execute_by_driver
from cio_pipeline.state.refusals import Refusal

INSERT_DELIVERY = "INSERT INTO deliveries (day, event_ids, new_customers, campaign_events) VALUES (?, ?, ?, ?)"


@dataclass
class Acknowledgement:
    """What one answer of Customer.io acknowledges, or what is recorded without sending it."""

    event_ids: bytes = b""
    """The ids of the accepted events, packed by `pack_ids` and joined."""
    campaign_events: int = 0
    """The number of these that were new to Customer.io and young enough to start campaigns."""
    customers: dict[str, bytes] = field(default_factory=dict)
    """The accepted attributes, by customer's key: a packed state (`attribute_state.pack`), or several of different attributes,
    joined."""
    ids_to_close: Callable[[], list[str]] = list
    """Returns the ids (`Refusal.item_id`) of the items that are accepted or no longer to be sent, to close their refusals. It
    is called only if there are refusals."""
    refused: list[Refusal] = field(default_factory=list)
    """The refused items."""


def record(transaction: sa.Connection, day: str, answer: Acknowledgement, has_refusals: bool) -> None:
    """Records an answer. has_refusals: whether there is any refusal that may have to be closed."""
    customers = {customer_id(key): state for key, state in answer.customers.items()}
    states, new_customers = customer_states.merge_into(transaction, customers)
    if answer.event_ids or new_customers:
        execute_by_driver(transaction, INSERT_DELIVERY, (day, answer.event_ids, new_customers, answer.campaign_events))
    if has_refusals:
        refusals.close(transaction, day, answer.ids_to_close() + [refusal.item_id for refusal in answer.refused])
        refusals.close_superseded(transaction, states)
    refusals.keep(transaction, day, answer.refused)
