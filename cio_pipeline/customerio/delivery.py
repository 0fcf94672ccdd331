"""The delivery of a day: what is still to be sent goes out over a few lanes, and each answer is recorded at once."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from cio_pipeline.customerio.batches import Item, requests
from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.customerio.plan import TRIGGER_SECONDS, LedgerView, Plan, plan_redelivery, plan_shard
from cio_pipeline.customerio.sample import sample
from cio_pipeline.customerio.sender import ONLY_PERSONLESS, Sender
from cio_pipeline.customerio.shards import DEFAULTS, DeliveryOptions, Shards, texts, to_deliver
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask
from cio_pipeline.progress import Progress
from cio_pipeline.state.ledger import Acknowledgement, Ledger, Refusal

SHARDS_AHEAD = 3
"""So many shards may be planned, or under way, behind the oldest one whose answers are awaited: that bounds the memory."""

LANES_AT_ONCE = 8
"""So many requests are under way at once, of four shards of two lanes each, as large ones have. If each takes a tenth of a
second, that is 80 a second; Customer.io allows 100."""


@dataclass
class Report:
    """What became of a day: counts by name, events to be sent by their masked names, and a few masked lines."""

    counts: Counter[str] = field(default_factory=Counter)
    event_names: Counter[str] = field(default_factory=Counter)
    sample: list[str] = field(default_factory=list)


def deliver(
    day: str,
    shards: Shards,
    ledger: Ledger,
    client: TrackClient,
    options: DeliveryOptions = DEFAULTS,
    events: int | None = None,
) -> Report:
    """Sends what the ledger does not know yet of a day's (customers, events), shard by shard.

    events: how many the day has, for the log. Raises what the client and the ledger raise (`NotDelivered`, `Unavailable`,
    `DatabaseError`) when it cannot go on; all that was acknowledged by then is kept, and a rerun sends the rest.
    """
    report, refused = Report(), ledger.refused(day)
    plans = _plans(day, shards, ledger, refused, options, report)
    with Progress(day, "events delivered", events) as progress:
        _send(day, plans, ledger, client, report, progress)
    return report


def preview(day: str, shards: Shards, ledger: Ledger, options: DeliveryOptions, seen: set[str]) -> Report:
    """What `deliver` would send; nothing is sent or kept. `seen` has the days' new customers so far, and gets this one's."""
    report = Report()
    for plan in _plans(day, shards, ledger, ledger.refused(day), options, report):
        sizes = [request.size for lane in requests(plan.upserts, plan.events) for request in lane]
        report.counts += Counter({"requests": len(sizes), "bytes": sum(sizes)})
        report.counts += _customers_to_send(plan.upserts, seen)
        report.counts += _events_to_send(plan.events.items(), report.event_names)
    return report


def redeliver(
    day: str, refused: list[Refusal], ledger: Ledger, client: TrackClient, options: DeliveryOptions = DEFAULTS
) -> Report:
    """Sends a day's refused items again, without what newer data has replaced since; what is accepted is closed.

    Raises as `deliver` does.
    """
    by_item = {refusal.item: refusal for refusal in refused}
    known = LedgerView(ledger.packed_states({refusal.key for refusal in refused}), ledger.delivered(day), by_item)
    plan = plan_redelivery(refused, known, options)
    report = Report(plan.counts, sample=sample(plan))
    report.counts["refusals mended by newer data"] += len(plan.closed)
    with Progress(day, "refused events sent again", len(plan.events)) as progress:
        _send(day, [plan], ledger, client, report, progress)
    return report


def _plans(
    day: str, shards: Shards, ledger: Ledger, refused: dict[str, Refusal], options: DeliveryOptions, report: Report
) -> Iterator[Plan]:
    """A plan for each shard, with its counts and a sample in the report."""
    delivered = ledger.delivered(day)
    for customers, events in to_deliver(shards, options, report.counts):
        known = LedgerView(ledger.packed_states(set(texts(customers, "key"))), delivered, refused)
        plan = plan_shard(customers, events, known, options)
        report.counts += plan.counts
        report.sample = report.sample or sample(plan)
        yield plan


def _customers_to_send(upserts: list[Item], seen: set[str]) -> Counter[str]:
    new = {upsert.key for upsert in upserts if upsert.is_new} - seen
    changed = {upsert.key for upsert in upserts} - new
    personless = new & {upsert.key for upsert in upserts if upsert.is_personless}
    seen |= new
    counts = {"upserts to send": len(upserts), "new customers": len(new), "changed customers": len(changed)}
    return Counter({**counts, ONLY_PERSONLESS: len(personless)})


def _events_to_send(events: list[Item], event_names: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    since = time.time() - TRIGGER_SECONDS
    for event in (read_object(item.operation.decode()) for item in events):
        event_names[mask(event["name"])] += 1
        counts["events to send"] += 1
        counts["events that can trigger campaigns"] += event["timestamp"] > since
    return counts


def _send(day: str, plans: Iterable[Plan], ledger: Ledger, client: TrackClient, report: Report, progress: Progress) -> None:
    """Sends each plan over its lanes while the next one is planned. What fails first, wherever that is, stops everything else.

    Lanes of different plans may go at once: they have no customer in common.
    """
    sent: deque[list[Future[Counter[str]]]] = deque()
    client.rate_limit.start()
    with ThreadPoolExecutor(LANES_AT_ONCE, "lane") as threads:
        try:
            for plan in plans:
                _record_unsent(day, plan, ledger)
                progress.add(plan.counts["events delivered before"])
                lanes = requests(plan.upserts, plan.events)
                sent.append([threads.submit(Sender(day, lane, ledger, client, progress).run) for lane in lanes])
                while len(sent) > SHARDS_AHEAD:
                    report.counts += _counts(sent.popleft())
            while sent:
                report.counts += _counts(sent.popleft())
        finally:
            client.rate_limit.stop()


def _record_unsent(day: str, plan: Plan, ledger: Ledger) -> None:
    """Keeps what needs no sending."""
    if plan.unsent or plan.closed:
        ledger.acknowledge(day, Acknowledgement(customers=plan.unsent, accepted=lambda: plan.closed))


def _counts(lanes: list[Future[Counter[str]]]) -> Counter[str]:
    """What the lanes have counted, when all are done. Raises what one has failed of."""
    return sum((lane.result() for lane in lanes), Counter())
