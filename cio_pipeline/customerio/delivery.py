"""The delivery of a day: what is still to be sent goes out over a few lanes, and each answer is kept at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from zlib import crc32

import pandas as pd

from cio_pipeline.connector.operations import identifiers
from cio_pipeline.customerio.client import TrackClient, Unsettled
from cio_pipeline.customerio.items import Item, pack
from cio_pipeline.customerio.plan import plan
from cio_pipeline.ledger.ledger import Acknowledgement, Ledger, Refusal

MOST_LANES = 4
LANE_BYTES = 16_000_000
"""A lane for each 16 MB or so: lanes cost a half-filled request each, and a small day needs but one."""


def deliver(
    day: str,
    shards: Iterable[tuple[pd.DataFrame, pd.DataFrame]],
    ledger: Ledger,
    client: TrackClient,
    say: Callable[[str], None] = lambda _: None,
) -> Counter[str]:
    """Sends what the ledger does not know yet of a day's (customers, events), shard by shard; gives counts by name.

    Raises what the client raises (`NotDelivered`, `http.Unavailable`) when it cannot go on; all that was acknowledged by then
    is kept, and a rerun sends the rest.
    """
    counts: Counter[str] = Counter()
    delivered, refused = ledger.delivered(day), ledger.refused(day)
    for customers, events in shards:
        todo = plan(customers, events, ledger.states(customers["key"].unique()), delivered, refused)
        counts += todo.counts
        if todo.unsent:
            ledger.acknowledge(day, Acknowledgement(customers=todo.unsent))
        counts += _send(day, todo.items, ledger, client)
        say(f"{day}: {counts['events sent']:,} events and {counts['customers sent']:,} customers sent so far.")
    return counts


def _send(day: str, items: list[Item], ledger: Ledger, client: TrackClient) -> Counter[str]:
    """A customer's items stay in one lane, in their order. The first lane that fails stops the others."""
    count = min(MOST_LANES, 1 + sum(len(item.operation) for item in items) // LANE_BYTES)
    lanes = [Lane(day, ledger, client) for _ in range(count)]
    stop = threading.Event()
    for item in items:
        lanes[crc32(item.key.encode()) % count].items.append(item)
    with ThreadPoolExecutor(count) as threads:
        try:
            for done in [threads.submit(lane.run, stop) for lane in lanes]:
                done.result()
        finally:
            stop.set()
    return sum((lane.counts for lane in lanes), Counter())


class Lane:
    """One line of requests, each answered and acknowledged before the next."""

    def __init__(self, day: str, ledger: Ledger, client: TrackClient) -> None:
        self.items: list[Item] = []
        self.counts: Counter[str] = Counter()
        self._day, self._ledger, self._client = day, ledger, client

    def run(self, stop: threading.Event) -> None:
        """Sends the items, unless another lane has failed."""
        try:
            for request in pack(self.items):
                if stop.is_set():
                    return
                self._settle(request)
        except BaseException:
            stop.set()
            raise

    def _settle(self, items: list[Item]) -> None:
        """Sends one request; where the answer does not tell which item is bad, its halves, until the bad one is alone."""
        try:
            refused = self._post(items)
        except Unsettled as unsettled:
            if len(items) > 1:
                middle = len(items) // 2
                self._settle(items[:middle])
                self._settle(items[middle:])
                return
            refused = {0: (unsettled.reason, unsettled.detail)}
        self._acknowledge(items, refused)

    def _post(self, items: list[Item]) -> dict[int, tuple[str, str]]:
        if items[0].call == "event":
            [identifier] = identifiers(items[0].key).values()
            self._client.event(identifier, items[0].operation)
            return {}
        return self._client.batch([item.operation for item in items])

    def _acknowledge(self, items: list[Item], refused: dict[int, tuple[str, str]]) -> None:
        accepted = [item for index, item in enumerate(items) if index not in refused]
        customers = [item for item in accepted if item.is_customer]
        answer = Acknowledgement(
            event_uuids=[item.name for item in accepted if not item.is_customer],
            accepted=[item.name for item in accepted],
            refused=[_refusal(items[index], *why) for index, why in refused.items()],
        )
        for item in customers:
            answer.customers[item.key] = {**answer.customers.get(item.key, {}), **item.state}
        self._ledger.acknowledge(self._day, answer)
        self.counts["customers sent"] += len(customers)
        self.counts["events sent"] += len(answer.event_uuids)
        for refusal in answer.refused:
            self.counts[f"refused: {refusal.reason}"] += 1


def _refusal(item: Item, reason: str, detail: str) -> Refusal:
    kind = "customer" if item.is_customer else "event"
    return Refusal(item.name, kind, reason, detail, item.operation.decode())
