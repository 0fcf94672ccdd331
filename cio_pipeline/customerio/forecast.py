"""What a run would send, by keys and the ledger alone: counted over all days before the first request, to bound the harm."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from cio_pipeline.customer_state import pack_ids
from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.plan import TRIGGER_SECONDS, Choices, Shards, among, chosen
from cio_pipeline.json_text import read_object
from cio_pipeline.state.ledger import Ledger, Refusal
from cio_pipeline.state.ledger_tables import customer_item

CUSTOMER_COLUMNS, EVENT_COLUMNS = ["key", "part"], ["ulid", "key", "distinct_id", "timestamp"]
"""What the frames need here; where there are refusals of the day or suppressed people, `operation` too."""


@dataclass(frozen=True)
class Bounds:
    """The most new customers a run may make, and the most events that can start campaigns; None: as many as there are."""

    new_customers: int | None = None
    campaign_events: int | None = None


@dataclass
class Forecast:
    """What the days so far would make of new customers, by hashes of their keys, and of events that can start campaigns."""

    customers: list[Any] = field(default_factory=list)
    campaign_events: int = 0

    @property
    def new_customers(self) -> int:
        """How many there are: each once, on however many days."""
        return len(np.unique(np.concatenate(self.customers))) if self.customers else 0

    def add_day(self, day: str, shards: Shards, ledger: Ledger, choices: Choices) -> None:
        """Adds a day's shards: less what is suppressed, beyond the limit, delivered, or was refused as it is."""
        refused = {} if choices.resend else {item: one.operation for item, one in ledger.refused(day).items()}
        delivered = pack_ids([]) if choices.resend else ledger.delivered(day)
        since = pd.Timestamp(time.time() - TRIGGER_SECONDS, unit="s", tz="UTC")
        for customers, events in chosen(shards, choices, Counter()):
            self._add_new(_less_refused(customers, _items(customers, refused), refused)["key"].unique().tolist(), ledger)
            young = events[(events["timestamp"] > since).to_numpy(bool)]
            young = young[~among(delivered, pack_ids(young["ulid"].tolist()))]
            self.campaign_events += len(_less_refused(young, young["ulid"], refused))

    def add_refusals(self, refused: list[Refusal], ledger: Ledger) -> None:
        """Adds what was refused, and is to be sent again: an event alone makes a customer, too."""
        self._add_new([one.key for one in refused], ledger)
        since = time.time() - TRIGGER_SECONDS
        times = (int(read_object(one.operation)["timestamp"]) for one in refused if one.kind == "event")
        self.campaign_events += sum(at > since for at in times)

    def refuse_beyond(self, bounds: Bounds) -> None:
        """Raises `NotDelivered` where that is more than the bounds allow."""
        for count, most, what, setting in (
            (self.new_customers, bounds.new_customers, "make {} new customers", "MAX_NEW_CUSTOMERS"),
            (self.campaign_events, bounds.campaign_events, "send {} events that can start campaigns", "MAX_CAMPAIGN_EVENTS"),
        ):
            if most is not None and count > most:
                raise NotDelivered(
                    f"This run would {what.format(f'{count:,}')}, more than CIO_{setting} allows ({most:,}): nothing was"
                    f" sent. If that is meant, set CIO_{setting}, or {setting.lower()} in the launchpad, to {count} or more."
                )

    def _add_new(self, keys: list[str], ledger: Ledger) -> None:
        new = ledger.unknown(keys)
        self.customers.append(pd.util.hash_array(np.array(new, dtype=object), categorize=False))


def unsent_events(day: str, shards: Shards, ledger: Ledger, choices: Choices) -> int:
    """How many events of a day are still to be sent, but for whom is suppressed."""
    delivered = pack_ids([]) if choices.resend else ledger.delivered(day)
    ordinary = Choices(choices.suppressed)
    return sum(
        int((~among(delivered, pack_ids(events["ulid"].tolist()))).sum()) for _, events in chosen(shards, ordinary, Counter())
    )


def _items(customers: pd.DataFrame, refused: dict[str, str]) -> list[str]:
    """What the upserts are called among the refusals, where there are any."""
    if not refused:
        return []
    return [customer_item(key, part) for key, part in zip(customers["key"], customers["part"], strict=True)]


def _less_refused(rows: pd.DataFrame, items: Any, refused: dict[str, str]) -> pd.DataFrame:
    """The rows whose items were not refused as they are."""
    if not refused:
        return rows
    return rows[[refused.get(item) != operation for item, operation in zip(items, rows["operation"], strict=True)]]
