"""Deliveries as a run makes them: with the ledger's lock, without which nothing is sent."""

from __future__ import annotations

from typing import Any

from cio_pipeline.customerio import delivery
from cio_pipeline.customerio.delivery import Report
from cio_pipeline.state.ledger import Ledger


def deliver(day: str, shards: Any, ledger: Ledger, *others: Any, **options: Any) -> Report:
    """As `delivery.deliver`."""
    with ledger.hold_delivery_lock(lambda: None):
        return delivery.deliver(day, shards, ledger, *others, **options)


def redeliver(day: str, refused: Any, ledger: Ledger, *others: Any, **options: Any) -> Report:
    """As `delivery.redeliver`."""
    with ledger.hold_delivery_lock(lambda: None):
        return delivery.redeliver(day, refused, ledger, *others, **options)
