"""Counts what a run would send over all its days, so that its limits are checked before the first request."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from cio_pipeline.attribute_state import upsert_id
from cio_pipeline.customerio.batches import pack_id_column
from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.delivered import delivered_ids
from cio_pipeline.customerio.plan import CAMPAIGN_WINDOW_SECONDS, within_campaign_window
from cio_pipeline.customerio.selection import (
    Columns,
    DeliveryOptions,
    FilteredRows,
    ShardPairs,
    array,
    column,
    texts,
    to_deliver,
)
from cio_pipeline.json_text import read_object
from cio_pipeline.packed_ids import are_in, pack_ids
from cio_pipeline.rules.columns import to_list
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal


@dataclass(frozen=True)
class RunLimits:
    """The limits of a run. None: no limit."""

    max_new_customers: int | None = None
    """The most new customers that it may create."""
    max_campaign_events: int | None = None
    """The most events that can start campaigns that it may send."""
    created_earlier_today: int = 0
    """The new customers that earlier runs of the same day have created, which count as well."""

    def check(self, new_customers: int, campaign_events: int) -> None:
        """Raises `NotDelivered` if these exceed the limits."""
        earlier, created = self.created_earlier_today, new_customers + self.created_earlier_today
        with_earlier = f", with the {earlier:,} of earlier runs of the day" if earlier else ""
        creates = f"make {created:,} new customers{with_earlier}"
        sends = f"send {campaign_events:,} events that can start campaigns"
        _check(created, self.max_new_customers, creates, "CIO_MAX_NEW_CUSTOMERS", "max_new_customers")
        _check(campaign_events, self.max_campaign_events, sends, "CIO_MAX_CAMPAIGN_EVENTS", "max_campaign_events")


def _check(count: int, limit: int | None, what: str, setting: str, field_of_run_config: str) -> None:
    if limit is not None and count > limit:
        raise NotDelivered(
            f"This run would {what}, more than {setting} allows ({limit:,}): nothing was sent. If that is intended, set"
            f" {setting}, or {field_of_run_config} in the launchpad, to {count} or more."
        )


@dataclass
class Forecast:
    """What the days so far would send."""

    customers: list[Any] = field(default_factory=list)
    """The new customers, as arrays of hashes of their keys."""
    campaign_events: int = 0
    """The number of events that can start campaigns."""

    @property
    def new_customers(self) -> int:
        """How many there are; one on several days counts once."""
        return len(np.unique(np.concatenate(self.customers))) if self.customers else 0

    def add_day(self, day: str, shards: ShardPairs, ledger: Ledger, options: DeliveryOptions) -> None:
        """Adds a day's shards, without what is suppressed, beyond the limit, delivered, or refused as it is now."""
        refused = {} if options.resend else {id_: refusal.operation for id_, refusal in ledger.refused(day).items()}
        delivered = pack_ids([]) if options.resend else delivered_ids(day, ledger, options)
        for customers, events in to_deliver(shards, options, Counter()):
            keys = texts(_without_refused(customers, _upsert_ids, refused), "key")
            if refused:  # an event creates a customer, too, if the upsert was refused
                keys += texts(_without_refused(_unsent(events, delivered), _event_ids, refused), "key")
            self._add_new(list(dict.fromkeys(keys)), ledger)
            in_window = within_campaign_window(events)
            if in_window.any():
                unsent = _unsent(FilteredRows(events, in_window), delivered)
                self.campaign_events += len(_without_refused(unsent, _event_ids, refused))

    def add_refusals(self, refused: list[Refusal], ledger: Ledger) -> None:
        """Adds refused items that are to be sent again. An event, too, creates its customer."""
        self._add_new([refusal.key for refusal in refused], ledger)
        since = time.time() - CAMPAIGN_WINDOW_SECONDS
        times = (int(read_object(refusal.operation)["timestamp"]) for refusal in refused if refusal.kind == "event")
        self.campaign_events += sum(seconds > since for seconds in times)

    def check(self, limits: RunLimits) -> None:
        """Raises `NotDelivered` if this exceeds the limits."""
        limits.check(self.new_customers, self.campaign_events)

    def _add_new(self, keys: list[str], ledger: Ledger) -> None:
        new = ledger.unknown(keys)
        self.customers.append(pd.util.hash_array(np.array(new, dtype=object), categorize=False))


def unsent_events(day: str, shards: ShardPairs, ledger: Ledger, options: DeliveryOptions) -> int:
    """Returns how many of a day's events are still to be sent, without those of suppressed people."""
    delivered = pack_ids([]) if options.resend else delivered_ids(day, ledger, options)
    ordinary = DeliveryOptions(options.suppressed)
    return sum(len(_unsent(events, delivered)) for _, events in to_deliver(shards, ordinary, Counter()))


def _unsent(events: Columns, delivered: npt.NDArray[np.bytes_]) -> Columns:
    return FilteredRows(events, ~are_in(delivered, pack_id_column(column(events, "ulid"))))


def _upsert_ids(customers: Columns) -> list[str]:
    """Returns the upserts' ids (`Refusal.item_id`)."""
    parts = to_list(array(customers["part"]))
    return [upsert_id(key, part) for key, part in zip(texts(customers, "key"), parts, strict=True)]


def _event_ids(events: Columns) -> list[str]:
    """Returns the events' ids (`Refusal.item_id`)."""
    return texts(events, "ulid")


def _without_refused(rows: Columns, ids_of: Callable[[Columns], list[str]], refused: dict[str, str]) -> Columns:
    """Returns the rows without those that were refused as they are now. refused: the refused operations, by id."""
    if not refused:
        return rows
    pairs = zip(ids_of(rows), texts(rows, "operation"), strict=True)
    return FilteredRows(rows, np.fromiter((refused.get(id_) != operation for id_, operation in pairs), bool, len(rows)))
