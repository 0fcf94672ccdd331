"""Deliveries as a run makes them: with the ledger's lock, without which nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from cio_pipeline.customerio import delivery
from cio_pipeline.customerio.delivery import Report
from cio_pipeline.customerio.selection import ShardPairs
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.tables.tables import Tables


def shards_of(tables: Tables, day: str) -> Iterator[tuple[pa.Table, pa.Table]]:
    """The day's customers and events, shard by shard."""
    yield from zip(tables.read_arrow("customers", day), tables.read_arrow("events", day), strict=True)


def deliver(day: str, shards: ShardPairs, ledger: Ledger, *others: Any, **options: Any) -> Report:
    """As `delivery.deliver`."""
    with ledger.hold_delivery_lock(lambda: None), ledger.sending(day, all_of_it=True):
        return delivery.deliver(day, shards, ledger, *others, **options)


def redeliver(day: str, refused: Any, ledger: Ledger, *others: Any, **options: Any) -> Report:
    """As `delivery.redeliver`."""
    with ledger.hold_delivery_lock(lambda: None), ledger.sending(day, all_of_it=False):
        return delivery.redeliver(day, refused, ledger, *others, **options)
