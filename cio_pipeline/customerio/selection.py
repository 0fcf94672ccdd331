"""Selects the rows that a delivery looks at: without suppressed people, and for at most `limit` customers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cio_pipeline.customerio.batches import TEXT
from cio_pipeline.customerio.counts import CUSTOMERS_BEYOND_LIMIT, CUSTOMERS_SUPPRESSED, EVENTS_BEYOND_LIMIT, EVENTS_SUPPRESSED
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.packed_ids import pack_ids
from cio_pipeline.rules.columns import Bools, to_list
from cio_pipeline.rules.consent import AllowConsent

Column: TypeAlias = "pa.Array | pa.ChunkedArray"


class Columns(Protocol):
    """Rows of a table, by column: `tables.columns.ShardColumns` or `FilteredRows`."""

    def __len__(self) -> int:
        """The number of rows."""

    def __getitem__(self, name: str, /) -> Column:
        """A column."""


ShardPairs = Iterable[tuple[Columns, Columns]]
"""A day's customers and events, shard by shard. All rows of a customer are in one shard."""


@dataclass(frozen=True)
class DeliveryOptions:
    """The options of a run's delivery.

    suppressed: who must not be sent; resend: also send what the ledger records as delivered, unchanged or refused; limit: send
    only this many customers of the day, with their events; allow_consent: R19, applied to rows derived under another setting;
    delivered_elsewhere: packed ids of stitched events of the day that were delivered with another day (R16).
    """

    suppressed: Suppressed = field(default_factory=Suppressed)
    resend: bool = False
    limit: int | None = None
    allow_consent: AllowConsent = "unsubscribe"
    delivered_elsewhere: npt.NDArray[np.bytes_] = field(default_factory=lambda: pack_ids([]), compare=False)


DEFAULTS = DeliveryOptions()


class FilteredRows:
    """Some rows of a shard, by column."""

    def __init__(self, rows: Columns, keep: Bools) -> None:
        """keep: which of the rows."""
        self._rows, self._keep, self._length = rows, keep, int(keep.sum())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> pa.Array:
        return array(self._rows[name]).filter(pa.array(self._keep))


def column(rows: Columns, name: str, kind: pa.DataType = TEXT) -> pa.Array:
    """Returns a column as one Arrow array of this type."""
    return array(rows[name]).cast(kind)


def texts(rows: Columns, name: str) -> list[str]:
    """Returns a column of texts, as a list."""
    return to_list(column(rows, name))


def array(column: Column) -> pa.Array:
    """Returns a column as one Arrow array."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def to_deliver(shards: ShardPairs, options: DeliveryOptions, counts: Counter[str]) -> ShardPairs:
    """Returns the shards without those who are suppressed, and with no more customers than the limit; counts what is left
    out."""
    return _limited(options.limit, _without_suppressed(options.suppressed, shards, counts), counts)


def suppressed_keys(suppressed: Suppressed, customers: Columns, events: Columns) -> set[str]:
    """Returns the keys of a shard's suppressed customers."""
    pairs = set(zip(texts(events, "key"), texts(events, "distinct_id"), strict=True))
    return suppressed.keys(texts(customers, "key"), texts(customers, "identifier"), texts(customers, "email"), pairs)


def _without_suppressed(suppressed: Suppressed, shards: ShardPairs, counts: Counter[str]) -> ShardPairs:
    for customers, events in shards:
        if not suppressed:
            yield customers, events
            continue
        keys = suppressed_keys(suppressed, customers, events)
        are_customers, are_events = _has_key(customers, keys), _has_key(events, keys)
        counts[CUSTOMERS_SUPPRESSED] += len(keys)
        counts[EVENTS_SUPPRESSED] += int(are_events.sum())
        yield FilteredRows(customers, ~are_customers), FilteredRows(events, ~are_events)


def _limited(limit: int | None, shards: ShardPairs, counts: Counter[str]) -> ShardPairs:
    left = limit
    for customers, events in shards:
        if left is None:
            yield customers, events
            continue
        keys = list(dict.fromkeys(texts(customers, "key")))
        first, beyond = set(keys[:left]), set(keys[left:])
        left -= len(first)
        counts[CUSTOMERS_BEYOND_LIMIT] += len(beyond)
        counts[EVENTS_BEYOND_LIMIT] += int(_has_key(events, beyond).sum())
        yield FilteredRows(customers, _has_key(customers, first)), FilteredRows(events, _has_key(events, first))


def _has_key(rows: Columns, keys: set[str]) -> Bools:
    """Returns which rows have one of these keys."""
    return np.fromiter((key in keys for key in texts(rows, "key")), bool, len(rows))
