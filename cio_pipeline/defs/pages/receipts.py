"""A day's receipt: the totals of all its runs, what this run did, and charts of the day and those before it."""

from collections import Counter
from collections.abc import Mapping
from datetime import date, timedelta
from typing import Any

import dagster as dg

from cio_pipeline.customerio.counts import (
    CAMPAIGN_EVENTS,
    CUSTOMERS_BEYOND_LIMIT,
    CUSTOMERS_SUPPRESSED,
    EVENTS_BEYOND_LIMIT,
    EVENTS_DELIVERED_BEFORE,
    EVENTS_SENT,
    EVENTS_SUPPRESSED,
    EVENTS_TOO_RECENT,
    LEFT_FOR_ANOTHER_RUN,
    NEW_CUSTOMERS,
    UPSERTS_SENT,
    UPSERTS_WITH_NOTHING_NEW,
    all_refused,
)
from cio_pipeline.defs.pages.charts import DAYS_SHOWN, DayEvents, day_chart, last_days_chart
from cio_pipeline.defs.pages.tables import size, table
from cio_pipeline.defs.store import Store
from cio_pipeline.pipeline.accounting import DayCounts
from cio_pipeline.pipeline.derive import COUNTS
from cio_pipeline.rules.classify import TO_SEND
from cio_pipeline.state.ledger import DayTotals

NEW_CUSTOMERS_IN_ALL = "new customers in all"
CAMPAIGN_EVENTS_IN_ALL = "events under 72 hours in all"
DELIVERED = "delivered in all"
OPEN_REFUSALS = "refused, open"

DAY_CHART = "events of the day"
LAST_DAYS = "events of the last 14 days"
THIS_RUN = "this run"
SAMPLE = "sent by this run"
CONNECTED = "connected to"
MEANING = {
    NEW_CUSTOMERS_IN_ALL: "Customers that the day's deliveries have created: Customer.io bills them.",
    CAMPAIGN_EVENTS_IN_ALL: "Events that were younger than 72 hours when they were sent: they can start campaigns.",
    DELIVERED: "Events of the day that Customer.io has accepted, each once.",
    OPEN_REFUSALS: "What Customer.io has refused of the day, and not accepted since.",
    DAY_CHART: "What became of the events of the day. Refused: by the rules (see the table rejects) or by Customer.io (see the"
    " check nothing_refused).",
    LAST_DAYS: "The same for the day and the 13 before it.",
    THIS_RUN: "What this run sent, and what it did not and why.",
    SAMPLE: "Some of what this run sent, masked.",
    CONNECTED: "Where the events come from and where they go.",
}
"""The entries that every receipt has. The numbers are totals of the day, so a run that sends nothing does not change them."""

TYPES = {
    name: "int" if name in (NEW_CUSTOMERS_IN_ALL, CAMPAIGN_EVENTS_IN_ALL, DELIVERED, OPEN_REFUSALS) else "string"
    for name in MEANING
}

COUNTS_ALWAYS_SHOWN = (
    NEW_CUSTOMERS,
    CAMPAIGN_EVENTS,
    EVENTS_SENT,
    UPSERTS_SENT,
    EVENTS_DELIVERED_BEFORE,
    UPSERTS_WITH_NOTHING_NEW,
    "refused",
)
COUNTS_SHOWN_IF_ANY = (
    EVENTS_TOO_RECENT,
    CUSTOMERS_BEYOND_LIMIT,
    EVENTS_BEYOND_LIMIT,
    CUSTOMERS_SUPPRESSED,
    EVENTS_SUPPRESSED,
)
"""The counts of what was left out on purpose, which are shown only if they are not 0."""

IN_ONE_LINE = (EVENTS_SENT, UPSERTS_SENT, EVENTS_DELIVERED_BEFORE, UPSERTS_WITH_NOTHING_NEW, "refused", "requests")
SHOWN_AS = {"refused": "refused by Customer.io"}


def run_counts(counts: Counter[str], traffic: Counter[str], seconds: float) -> dict[str, int | float]:
    """Returns the counts of what a run did for a day: the usual ones, all others that are not 0, then requests, bytes and
    time."""
    usual = {**{name: counts[name] for name in COUNTS_ALWAYS_SHOWN}, "refused": all_refused(counts)}
    others = {name: count for name, count in counts.items() if count and name not in usual}
    speed = {"seconds": round(seconds, 2), "events per second": round(counts[EVENTS_SENT] / seconds, 1) if seconds else 0.0}
    return {**usual, **others, "requests": traffic["requests"], "bytes": traffic["bytes"], **speed}


def receipt(
    totals: DayTotals, run: Mapping[str, int | float], sample: list[str], days: list[DayEvents], connected: str
) -> dict[str, dg.MetadataValue | int]:
    """Returns the receipt as Dagster shows it, with the entries of `MEANING`. days: the last is the day itself; connected:
    Markdown."""
    shown = {SHOWN_AS.get(name, name): size(int(value)) if name == "bytes" else value for name, value in run.items()}
    return {
        NEW_CUSTOMERS_IN_ALL: totals.new_customers,
        CAMPAIGN_EVENTS_IN_ALL: totals.campaign_events,
        DELIVERED: totals.events,
        OPEN_REFUSALS: totals.refused,
        **({LEFT_FOR_ANOTHER_RUN: int(run[LEFT_FOR_ANOTHER_RUN])} if LEFT_FOR_ANOTHER_RUN in run else {}),
        DAY_CHART: dg.MetadataValue.md(day_chart(days[-1])),
        LAST_DAYS: dg.MetadataValue.md(last_days_chart(days)),
        THIS_RUN: table([{"count": value, "what": name} for name, value in shown.items()]),
        SAMPLE: table([{"sent, masked": line} for line in sample]),
        CONNECTED: dg.MetadataValue.md(connected),
        "dagster/partition_row_count": totals.events,
    }


def last_days(day: str, store: Store, totals: DayTotals) -> list[DayEvents]:
    """Returns what became of the events of the day, with these totals, and of the days before it."""
    shown = [str(date.fromisoformat(day) - timedelta(days=back)) for back in range(DAYS_SHOWN - 1, -1, -1)]
    delivered = {**store.ledger.events_delivered(shown[:-1]), day: totals.events}
    refused = {**store.ledger.events_refused(shown[:-1]), day: totals.refused_events}
    return [
        day_events(shown_day, _day_counts(store, shown_day), delivered.get(shown_day, 0), refused.get(shown_day, 0))
        for shown_day in shown
    ]


def day_events(day: str, day_counts: DayCounts, delivered: int, refused: int) -> DayEvents:
    """Returns what became of a day's events. delivered, refused: the numbers of those that Customer.io accepted and refused.

    The ledger may have more than the rules would send now, if events were sent twice, or under other settings.
    """
    to_send = day_counts.outcomes[TO_SEND] + day_counts.stitched
    sent = min(delivered, to_send)
    open_refusals = min(refused, to_send - sent)
    return DayEvents(day, sent, to_send - sent - open_refusals, day_counts.filtered, day_counts.refused + open_refusals)


def _day_counts(store: Store, day: str) -> DayCounts:
    version = store.tables.find_version("events", day)
    return (
        DayCounts.from_json(dict(version.metadata[COUNTS]))
        if version is not None and COUNTS in version.metadata
        else DayCounts()
    )


def in_one_line(run: Mapping[str, Any]) -> str:
    """Returns what `run_counts` has returned as `3 events sent, 2 upserts sent, ...`."""
    names = [*IN_ONE_LINE, *(name for name in COUNTS_SHOWN_IF_ANY if run.get(name))]
    return ", ".join(f"{run.get(name, 0):,} {_singular(SHOWN_AS.get(name, name), run.get(name, 0))}" for name in names)


def _singular(words: str, count: int | float) -> str:
    """Returns `1 event sent` instead of `1 events sent`."""
    first, _, rest = words.partition(" ")
    return " ".join(filter(None, (first.removesuffix("s") if count == 1 else first, rest)))
