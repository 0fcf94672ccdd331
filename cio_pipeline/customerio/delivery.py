"""The delivery of a day: what is still to be sent goes out over a few lanes, and each answer is kept at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cio_pipeline.customerio.batches import Item, lanes, pack, size
from cio_pipeline.customerio.client import HARMLESS, TrackClient, UnnamedRefusal
from cio_pipeline.customerio.plan import ORDINARY, TRIGGER_SECONDS, Choices, Known, Plan, Shards, chosen, plan, plan_again
from cio_pipeline.customerio.rate_limit import Stopped
from cio_pipeline.customerio.sample import sample
from cio_pipeline.http_retry import Unavailable
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask
from cio_pipeline.rules.items import identifiers
from cio_pipeline.state.ledger import Acknowledgement, Ledger, Refusal

HARMLESS_BETWEEN_TRIES = (2, 1, 3, 1, 2)
"""Requests between the six tries of an item alone. No fault that comes and goes evenly hits just these, and one that comes by
chance, whatever its odds, does so in less than one of 20,000 cases."""

MANY_ALIKE = 10
"""So many refused in the same words, and none of their kind accepted, is no accident of these."""

ONLY_PERSONLESS = "new customers with nothing but personless events"


@dataclass
class Report:
    """What became of a day: counts by name, events to be sent by their masked names, and a few lines with nobody's data."""

    counts: Counter[str] = field(default_factory=Counter)
    event_names: Counter[str] = field(default_factory=Counter)
    sample: list[str] = field(default_factory=list)


def deliver(
    day: str,
    shards: Shards,
    ledger: Ledger,
    client: TrackClient,
    say: Callable[[str], None] = lambda _: None,
    choices: Choices = ORDINARY,
) -> Report:
    """Sends what the ledger does not know yet of a day's (customers, events), shard by shard.

    Raises what the client and the ledger raise (`NotDelivered`, `http.Unavailable`, `database.DatabaseError`) when it cannot
    go on; all that was acknowledged by then is kept, and a rerun sends the rest.
    """
    report, refused = Report(), ledger.refused(day)
    for made in _plans(day, shards, ledger, refused, choices, report):
        _carry_out(day, made, refused, ledger, client, report)
        say(f"{day}: {report.counts['events sent']:,} events and {report.counts['customers sent']:,} customers sent so far.")
    return report


def preview(day: str, shards: Shards, ledger: Ledger, choices: Choices, seen: set[str]) -> Report:
    """What `deliver` would send; nothing is sent or kept. `seen` has the days' new customers so far, and gets this one's."""
    report = Report()
    for made in _plans(day, shards, ledger, ledger.refused(day), choices, report):
        requests = [request for lane in lanes(made.items) for request in pack(lane)]
        report.counts += Counter({"requests": len(requests), "bytes": sum(map(size, requests))})
        report.counts += _customers_to_send(made.items, seen) + _events_to_send(made.items, report.event_names)
    return report


def redeliver(day: str, refused: list[Refusal], ledger: Ledger, client: TrackClient, choices: Choices = ORDINARY) -> Report:
    """Sends a day's refused items again, less what newer data has settled since; what is accepted is closed.

    Raises as `deliver` does.
    """
    known = Known(ledger.states({refusal.key for refusal in refused}), ledger.delivered(day), {})
    made = plan_again(refused, known, choices)
    report = Report(made.counts, sample=sample(made.items))
    report.counts["refusals mended by newer data"] += len(made.settled)
    _carry_out(day, made, {refusal.item: refusal for refusal in refused}, ledger, client, report)
    return report


def _plans(
    day: str,
    shards: Shards,
    ledger: Ledger,
    refused: dict[str, Refusal],
    choices: Choices,
    report: Report,
) -> Iterator[Plan]:
    """A plan for each shard, with its counts and a sample in the report."""
    delivered = ledger.delivered(day)
    for customers, events in chosen(shards, choices, report.counts):
        known = Known(ledger.states(customers["key"].unique()), delivered, refused)
        made = plan(customers, events, known, choices)
        report.counts += made.counts
        report.sample = report.sample or sample(made.items)
        yield made


def _customers_to_send(items: list[Item], seen: set[str]) -> Counter[str]:
    upserts = [item for item in items if item.is_customer]
    new = {item.key for item in upserts if item.is_new} - seen
    changed = {item.key for item in upserts} - new
    personless = new & {item.key for item in upserts if item.is_personless}
    seen |= new
    counts = {"upserts to send": len(upserts), "new customers": len(new), "changed customers": len(changed)}
    return Counter({**counts, ONLY_PERSONLESS: len(personless)})


def _events_to_send(items: list[Item], event_names: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    since = time.time() - TRIGGER_SECONDS
    for event in (read_object(item.operation.decode()) for item in items if not item.is_customer):
        event_names[mask(event["name"])] += 1
        counts["events to send"] += 1
        counts["events that can trigger campaigns"] += event["timestamp"] > since
    return counts


def _carry_out(day: str, made: Plan, refused: dict[str, Refusal], ledger: Ledger, client: TrackClient, report: Report) -> None:
    """Notes what needs no sending, and sends the rest over the lanes. The first lane that fails stops the others."""
    closed = [name for name in made.settled if name in refused]
    if made.unsent or closed:
        ledger.acknowledge(day, Acknowledgement(customers=made.unsent, accepted=closed))
    ways = [Lane(day, items, ledger, client) for items in lanes(made.items)]
    client.pace.start()
    with ThreadPoolExecutor(len(ways)) as threads:
        try:
            for done in [threads.submit(way.run) for way in ways]:
                done.result()
        finally:
            client.pace.stop()
    report.counts += sum((way.counts for way in ways), Counter())


class Lane:
    """One line of requests, each answered and acknowledged before the next."""

    def __init__(self, day: str, items: list[Item], ledger: Ledger, client: TrackClient) -> None:
        self.counts: Counter[str] = Counter()
        self._day, self._items, self._ledger, self._client = day, items, ledger, client
        self._accepted_kinds: set[str] = set()
        self._harmless = HARMLESS
        self._unnamed: list[tuple[Item, UnnamedRefusal]] = []

    def run(self) -> None:
        """Sends the items, unless another lane has failed."""
        try:
            for request in pack(self._items):
                self._settle(request)
            self._refuse_unnamed()
        except Stopped:
            return
        except BaseException:
            self._client.pace.stop()
            raise

    def _settle(self, items: list[Item]) -> None:
        """Sends one request; where the answer does not tell which item is bad, its halves, until the bad one is alone.

        Raises `http.Unavailable` where it refuses all of them, and a harmless one, too.
        """
        try:
            refused = self._post(items)
        except UnnamedRefusal:
            if len(items) > 1:
                middle = len(items) // 2
                self._settle(items[:middle])
                self._settle(items[middle:])
                return
        else:
            if len(refused) == len(items):
                self._client.try_harmless(self._harmless)
            self._acknowledge(items, refused)
            return
        self._settle_alone(items[0])

    def _settle_alone(self, item: Item) -> None:
        """An item that was refused alone, but not by name: the fault is its own if Customer.io takes a harmless one meanwhile.

        By turns, and not evenly, for a fault that comes and goes must not look like the item's. Raises `http.Unavailable` where
        Customer.io refuses the harmless one, too: then it would refuse all.
        """
        for harmless in HARMLESS_BETWEEN_TRIES:
            for _ in range(harmless):
                self._client.try_harmless(self._harmless)
            try:
                refused = self._post([item])
            except UnnamedRefusal as unnamed:
                last = unnamed
            else:
                self._acknowledge([item], refused)
                return
        self._unnamed.append((item, last))
        if _kind(item) in self._accepted_kinds:
            self._refuse_unnamed()
        else:
            self._stop_where_all_are_refused_alike(_kind(item), last)

    def _stop_where_all_are_refused_alike(self, kind: str, last: UnnamedRefusal) -> None:
        said = (last.reason, last.detail)
        if sum(_kind(item) == kind and (why.reason, why.detail) == said for item, why in self._unnamed) >= MANY_ALIKE:
            raise Unavailable(f"Customer.io refuses every {kind} in the same words, with {last.reason}: a rerun sends them.")

    def _refuse_unnamed(self) -> None:
        """Keeps as refused what was found to be so alone."""
        while self._unnamed:
            item, why = self._unnamed.pop(0)
            self._acknowledge([item], {0: (why.reason, why.detail)})

    def _post(self, items: list[Item]) -> dict[int, tuple[str, str]]:
        self._ledger.check_lock()
        if items[0].call == "event":
            [identifier] = identifiers(items[0].key).values()
            self._client.event(identifier, items[0].operation)
            return {}
        return self._client.batch([item.operation for item in items])

    def _acknowledge(self, items: list[Item], refused: dict[int, tuple[str, str]]) -> None:
        accepted = [item for index, item in enumerate(items) if index not in refused]
        customers = [item for item in accepted if item.is_customer]
        answer = Acknowledgement(
            event_ids=[item.name for item in accepted if not item.is_customer],
            accepted=[item.name for item in accepted],
            refused=[_refusal(items[index], *why) for index, why in refused.items()],
        )
        for item in customers:
            self._harmless = item.operation  # sent once more, it changes nothing
            answer.customers[item.key] = {**answer.customers.get(item.key, {}), **item.state}
        self._ledger.acknowledge(self._day, answer)
        self._accepted_kinds |= {_kind(item) for item in accepted}
        self.counts["customers sent"] += len(customers)
        self.counts["new customers"] += sum(item.is_new for item in customers)
        self.counts[ONLY_PERSONLESS] += sum(item.is_personless for item in customers)
        self.counts["events sent"] += len(answer.event_ids)
        for refusal in answer.refused:
            self.counts[f"refused: {refusal.reason}"] += 1


def _kind(item: Item) -> str:
    """What one item must have in common with another, so that the other's acceptance says something about it."""
    return "customer" if item.is_customer else "event" if item.call == "batch" else "large event"


def _refusal(item: Item, reason: str, detail: str) -> Refusal:
    kind = "customer" if item.is_customer else "event"
    return Refusal(item.name, kind, reason, detail, item.operation.decode(), item.key, item.call, item.state)
