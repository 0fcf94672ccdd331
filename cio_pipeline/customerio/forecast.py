"""What a run would send, by keys and the ledger alone: counted over all days before the first request, to bound the harm."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cio_pipeline.customer_state import pack_ids
from cio_pipeline.customerio.batches import packed, values
from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.plan import TRIGGER_SECONDS, among, is_young
from cio_pipeline.customerio.shards import Columns, DeliveryOptions, FilteredRows, Shards, array, column, texts, to_deliver
from cio_pipeline.json_text import read_object
from cio_pipeline.state.ledger import Ledger, Refusal
from cio_pipeline.state.ledger_tables import customer_item


@dataclass(frozen=True)
class Bounds:
    """The most new customers a run may make, and the most events that can start campaigns; None: as many as there are.

    made_before: new customers that count, too, for earlier runs have made them of the same day.
    """

    new_customers: int | None = None
    campaign_events: int | None = None
    made_before: int = 0

    def refuse(self, new_customers: int, campaign_events: int) -> None:
        """Raises `NotDelivered` where these are more."""
        with_them = f", with the {self.made_before:,} of earlier runs of the day" if self.made_before else ""
        for count, most, what, setting in (
            (new_customers + self.made_before, self.new_customers, f"make {{}} new customers{with_them}", "MAX_NEW_CUSTOMERS"),
            (campaign_events, self.campaign_events, "send {} events that can start campaigns", "MAX_CAMPAIGN_EVENTS"),
        ):
            if most is not None and count > most:
                raise NotDelivered(
                    f"This run would {what.format(f'{count:,}')}, more than CIO_{setting} allows ({most:,}): nothing was"
                    f" sent. If that is meant, set CIO_{setting}, or {setting.lower()} in the launchpad, to {count} or more."
                )


@dataclass
class Forecast:
    """What the days so far would make of new customers, by hashes of their keys, and of events that can start campaigns."""

    customers: list[Any] = field(default_factory=list)
    campaign_events: int = 0

    @property
    def new_customers(self) -> int:
        """How many there are: each once, on however many days."""
        return len(np.unique(np.concatenate(self.customers))) if self.customers else 0

    def add_day(self, day: str, shards: Shards, ledger: Ledger, options: DeliveryOptions) -> None:
        """Adds a day's shards: less what is suppressed, beyond the limit, delivered, or was refused as it is."""
        refused = {} if options.resend else {item: one.operation for item, one in ledger.refused(day).items()}
        delivered = pack_ids([]) if options.resend else ledger.delivered(day)
        for customers, events in to_deliver(shards, options, Counter()):
            keys = texts(_less_refused(customers, _upserts, refused), "key")
            self._add_new(list(dict.fromkeys(keys)), ledger)
            young = is_young(events)
            if young.any():
                unsent = _unsent(FilteredRows(events, young), delivered)
                self.campaign_events += len(_less_refused(unsent, _ids, refused))

    def add_refusals(self, refused: list[Refusal], ledger: Ledger) -> None:
        """Adds what was refused, and is to be sent again: an event alone makes a customer, too."""
        self._add_new([one.key for one in refused], ledger)
        since = time.time() - TRIGGER_SECONDS
        times = (int(read_object(one.operation)["timestamp"]) for one in refused if one.kind == "event")
        self.campaign_events += sum(at > since for at in times)

    def refuse_beyond(self, bounds: Bounds) -> None:
        """Raises `NotDelivered` where that is more than the bounds allow."""
        bounds.refuse(self.new_customers, self.campaign_events)

    def _add_new(self, keys: list[str], ledger: Ledger) -> None:
        new = ledger.unknown(keys)
        self.customers.append(pd.util.hash_array(np.array(new, dtype=object), categorize=False))


def unsent_events(day: str, shards: Shards, ledger: Ledger, options: DeliveryOptions) -> int:
    """How many events of a day are still to be sent, but for whom is suppressed."""
    delivered = pack_ids([]) if options.resend else ledger.delivered(day)
    ordinary = DeliveryOptions(options.suppressed)
    return sum(len(_unsent(events, delivered)) for _, events in to_deliver(shards, ordinary, Counter()))


def _unsent(events: Columns, delivered: Any) -> Columns:
    return FilteredRows(events, ~among(delivered, packed(column(events, "ulid"))))


def _upserts(customers: Columns) -> list[str]:
    """What the upserts are called among the refusals."""
    parts = values(array(customers["part"]))
    return [customer_item(key, part) for key, part in zip(texts(customers, "key"), parts, strict=True)]


def _ids(events: Columns) -> list[str]:
    return texts(events, "ulid")


def _less_refused(rows: Columns, items: Callable[[Columns], list[str]], refused: dict[str, str]) -> Columns:
    """The rows but for those that were refused as they are; `items` gives what rows are called among the refusals."""
    if not refused:
        return rows
    pairs = zip(items(rows), texts(rows, "operation"), strict=True)
    return FilteredRows(rows, np.fromiter((refused.get(item) != operation for item, operation in pairs), bool, len(rows)))
