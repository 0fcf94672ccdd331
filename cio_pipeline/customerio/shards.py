"""A day's shards by column, without the people and rows that are not to be delivered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cio_pipeline.customerio.batches import TEXT, values
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.rules.consent import AllowConsent

Columns = Any
"""What has a length and gives a column by its name: a dataframe, `tables.columns.ShardColumns`, or `FilteredRows`."""

Shards = Iterable[tuple[Columns, Columns]]
"""A day's customers and events. A customer and their events are in one shard, so that each is known by what the other tells."""


@dataclass(frozen=True)
class DeliveryOptions:
    """What a run may choose about its delivery.

    suppressed: who must not be sent; resend: sends what the ledger has as delivered, unchanged or refused, too; limit: only the
    first so many customers of the day, with their events; allow_consent: R19, for what was made under another setting.
    """

    suppressed: Suppressed = field(default_factory=Suppressed)
    resend: bool = False
    limit: int | None = None
    allow_consent: AllowConsent = "unsubscribe"


DEFAULTS = DeliveryOptions()


class FilteredRows:
    """Some rows of a shard, by column."""

    def __init__(self, rows: Columns, keep: Any) -> None:
        """keep: for each row, whether it is one of them (numpy, bool)."""
        self._rows, self._keep, self._length = rows, keep, int(keep.sum())

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> Any:
        return array(self._rows[name]).filter(pa.array(self._keep))


def column(rows: Columns, name: str, kind: pa.DataType = TEXT) -> Any:
    """A column as one Arrow array of this type."""
    return array(rows[name]).cast(kind)


def texts(rows: Columns, name: str) -> list[str]:
    """A column of texts, as a list."""
    found: list[str] = values(column(rows, name))
    return found


def array(given: Any) -> Any:
    """A column as one Arrow array."""
    found = pa.array(given) if isinstance(given, pd.Series) else given
    return found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found


def to_deliver(shards: Shards, options: DeliveryOptions, counts: Counter[str]) -> Shards:
    """The shards without who is suppressed, and no more customers than the limit; counts what is left out."""
    return _first(options.limit, _without(options.suppressed, shards, counts), counts)


def suppressed_keys(suppressed: Suppressed, customers: Columns, events: Columns) -> set[str]:
    """The keys of a shard whose customers are suppressed."""
    behind = set(zip(texts(events, "key"), texts(events, "distinct_id"), strict=True))
    return suppressed.keys(texts(customers, "key"), texts(customers, "identifier"), texts(customers, "email"), behind)


def _without(suppressed: Suppressed, shards: Shards, counts: Counter[str]) -> Shards:
    for customers, events in shards:
        if not suppressed:
            yield customers, events
            continue
        keys = suppressed_keys(suppressed, customers, events)
        theirs, gone = _among(customers, keys), _among(events, keys)
        counts["customers suppressed"] += len(keys)
        counts["events suppressed"] += int(gone.sum())
        yield FilteredRows(customers, ~theirs), FilteredRows(events, ~gone)


def _first(limit: int | None, shards: Shards, counts: Counter[str]) -> Shards:
    left = limit
    for customers, events in shards:
        if left is None:
            yield customers, events
            continue
        keys = list(dict.fromkeys(texts(customers, "key")))
        first, beyond = set(keys[:left]), set(keys[left:])
        left -= len(first)
        counts["customers beyond the limit"] += len(beyond)
        counts["events beyond the limit"] += int(_among(events, beyond).sum())
        yield FilteredRows(customers, _among(customers, first)), FilteredRows(events, _among(events, first))


def _among(rows: Columns, keys: set[str]) -> Any:
    """For each row, whether its key is one of these."""
    return np.fromiter((key in keys for key in texts(rows, "key")), bool, len(rows))
