"""The delivery of a day: what is still to be sent is sent over a few lanes, and each answer is recorded at once."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from cio_pipeline.customerio.batches import Item, pack_requests
from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.customerio.counts import (
    CAMPAIGN_EVENTS,
    CHANGED_CUSTOMERS,
    EVENTS_DELIVERED_BEFORE,
    EVENTS_TO_SEND,
    NEW_CUSTOMERS,
    ONLY_PERSONLESS,
    REFUSALS_CLOSED,
    UPSERTS_TO_SEND,
)
from cio_pipeline.customerio.delivered import delivered_ids
from cio_pipeline.customerio.in_flight import InFlight
from cio_pipeline.customerio.plan import CAMPAIGN_WINDOW_SECONDS, LedgerView, Plan, plan_shard
from cio_pipeline.customerio.redelivery import plan_redelivery
from cio_pipeline.customerio.sample import sample
from cio_pipeline.customerio.selection import DEFAULTS, DeliveryOptions, ShardPairs, texts, to_deliver
from cio_pipeline.customerio.sender import Sender
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask
from cio_pipeline.progress import Progress
from cio_pipeline.rules.columns import to_list
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal

SHARDS_AHEAD = 3
"""How many shards may be planned or being sent beyond the oldest whose answers are awaited, which limits the memory."""

LANES_AT_ONCE = 16
"""How many requests are sent at once: four shards of four lanes each, as large ones have. If each takes a tenth of a second,
that is more than the 100 a second that Customer.io allows."""


@dataclass
class Report:
    """What a delivery did: counts by what was counted, events to send by masked name, and a few masked lines."""

    counts: Counter[str] = field(default_factory=Counter)
    event_names: Counter[str] = field(default_factory=Counter)
    sample: list[str] = field(default_factory=list)


def deliver(
    day: str,
    shards: ShardPairs,
    ledger: Ledger,
    client: TrackClient,
    options: DeliveryOptions = DEFAULTS,
    events: int | None = None,
) -> Report:
    """Sends, shard by shard, the day's customers and events that the ledger does not record as delivered.

    events: how many the day has, for the progress. When it cannot go on, it raises what the client and the ledger raise
    (`NotDelivered`, `Unavailable`, `DatabaseError`). What was acknowledged by then is kept, and a rerun sends the rest.
    """
    report, refused = Report(), ledger.refused(day)
    plans = _plans(day, shards, ledger, refused, options, report)
    with Progress(day, "events delivered", events) as progress:
        _send_plans(day, plans, ledger, client, report, progress)
    return report


def preview(day: str, shards: ShardPairs, ledger: Ledger, options: DeliveryOptions, seen: set[str]) -> Report:
    """Returns what `deliver` would send; nothing is sent or recorded. The day's new customers are added to `seen`, those of the
    days so far."""
    report = Report()
    for plan in _plans(day, shards, ledger, ledger.refused(day), options, report):
        sizes = [request.size for lane in pack_requests(plan.upserts, plan.events) for request in lane]
        report.counts += Counter({"requests": len(sizes), "bytes": sum(sizes)})
        report.counts += _customers_to_send(plan, seen)
        report.counts += _events_to_send(plan.events.items(), report.event_names)
    return report


def still_to_send(day: str, shards: ShardPairs, ledger: Ledger, options: DeliveryOptions) -> int:
    """Returns how many upserts and events of the day `deliver` would send now without a limit."""
    whole_day = replace(options, limit=None, resend=False)
    plans = _plans(day, shards, ledger, ledger.refused(day), whole_day, Report())
    return sum(len(plan.upserts) + len(plan.events) for plan in plans)


def redeliver(
    day: str, refused: list[Refusal], ledger: Ledger, client: TrackClient, options: DeliveryOptions = DEFAULTS
) -> Report:
    """Sends a day's refused items again, except where newer data has replaced them; what is accepted is closed.

    Raises as `deliver` does.
    """
    by_item = {refusal.item_id: refusal for refusal in refused}
    states, in_flight = ledger.packed_states({refusal.key for refusal in refused}), InFlight(day, ledger.in_flight())
    recorded = LedgerView(states, ledger.delivered(day), by_item, in_flight)
    plan = plan_redelivery(refused, recorded, options)
    report = Report(plan.counts, sample=sample(plan))
    report.counts[REFUSALS_CLOSED] += len(plan.closed_ids)
    with Progress(day, "refused events sent again", len(plan.events)) as progress:
        _send_plans(day, [plan], ledger, client, report, progress)
    return report


def _plans(
    day: str, shards: ShardPairs, ledger: Ledger, refused: dict[str, Refusal], options: DeliveryOptions, report: Report
) -> Iterator[Plan]:
    """Yields a plan for each shard, with its counts and a sample in the report."""
    delivered, in_flight = delivered_ids(day, ledger, options), InFlight(day, ledger.in_flight())
    for customers, events in to_deliver(shards, options, report.counts):
        recorded = LedgerView(ledger.packed_states(set(texts(customers, "key"))), delivered, refused, in_flight)
        plan = plan_shard(customers, events, recorded, options)
        report.counts += plan.counts
        report.sample = report.sample or sample(plan)
        yield plan


def _customers_to_send(plan: Plan, seen: set[str]) -> Counter[str]:
    by_event = plan.without_upsert.keys() & set(to_list(plan.events.keys)) if plan.without_upsert else set()
    personless = {key for key in by_event if plan.without_upsert[key]} | {one.key for one in plan.upserts if one.is_personless}
    new = (by_event | {upsert.key for upsert in plan.upserts if upsert.is_new}) - seen
    changed = {upsert.key for upsert in plan.upserts} - new
    seen |= new
    counts = {UPSERTS_TO_SEND: len(plan.upserts), NEW_CUSTOMERS: len(new), CHANGED_CUSTOMERS: len(changed)}
    return Counter({**counts, ONLY_PERSONLESS: len(new & personless)})


def _events_to_send(events: list[Item], event_names: Counter[str]) -> Counter[str]:
    counts: Counter[str] = Counter()
    since = time.time() - CAMPAIGN_WINDOW_SECONDS
    for event in (read_object(item.operation.decode()) for item in events):
        event_names[mask(event["name"])] += 1
        counts[EVENTS_TO_SEND] += 1
        counts[CAMPAIGN_EVENTS] += event["timestamp"] > since
    return counts


def _send_plans(
    day: str, plans: Iterable[Plan], ledger: Ledger, client: TrackClient, report: Report, progress: Progress
) -> None:
    """Sends each plan over its lanes while the next one is being planned. The first failure stops everything else.

    Lanes of different plans may be sent at once, as they have no customer in common.
    """
    running: deque[list[Future[Counter[str]]]] = deque()
    client.start_day()
    with ThreadPoolExecutor(LANES_AT_ONCE, "lane") as threads:
        try:
            for plan in plans:
                _record(day, plan, ledger)
                progress.add(plan.counts[EVENTS_DELIVERED_BEFORE])
                ledger.put_in_flight(day, _states(plan.upserts))
                lanes = pack_requests(plan.upserts, plan.events)
                senders = [Sender(day, lane, ledger, client, progress, plan.without_upsert) for lane in lanes]
                running.append([threads.submit(sender.run) for sender in senders])
                while len(running) > SHARDS_AHEAD:
                    report.counts += _counts(running.popleft())
            while running:
                report.counts += _counts(running.popleft())
        finally:
            client.rate_limit.stop()


def _record(day: str, plan: Plan, ledger: Ledger) -> None:
    """Records what need not be sent."""
    if plan.states or plan.closed_ids:
        ledger.acknowledge(day, Acknowledgement(customers=plan.states, ids_to_close=lambda: plan.closed_ids))


def _states(upserts: list[Item]) -> dict[str, bytes]:
    """Returns the attributes in the upserts, by customer's key: packed states, those of several parts joined."""
    states: dict[str, bytes] = {}
    for upsert in upserts:
        states[upsert.key] = states.get(upsert.key, b"") + upsert.state
    return states


def _counts(lanes: list[Future[Counter[str]]]) -> Counter[str]:
    """Returns the lanes' counts, once all are done. Raises what any lane has raised."""
    return sum((lane.result() for lane in lanes), Counter())
