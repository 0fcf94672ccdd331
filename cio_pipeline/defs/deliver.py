"""The sink: brings Customer.io up to date with the day's tables."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import dagster as dg
import pandas as pd
from pydantic import Field

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.delivery import Report, deliver, preview
from cio_pipeline.customerio.plan import Choices
from cio_pipeline.customerio.suppressed import Suppressed
from cio_pipeline.database import DatabaseError
from cio_pipeline.defs.checks import or_warning
from cio_pipeline.defs.partitions import a_few_days_a_run, days
from cio_pipeline.defs.resources import CustomerIo, Store
from cio_pipeline.http import Unavailable

TRY_AGAIN_SECONDS = 30
NAMES_SHOWN = 100


class Delivery(dg.Config):
    """What to do otherwise than usual."""

    dry_run: bool = Field(default=False, description="Plan and check everything, report it, and send nothing.")
    resend: bool = Field(
        default=False,
        description="Send again what was delivered, is unchanged or was refused. Attributes never go back in time even so.",
    )
    limit: int | None = Field(default=None, ge=1, description="Send only each day's first so many customers and their events.")
    hold_recent_events: float | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Keep events younger than so many hours for a later run: those under 72 hours can start campaigns.",
    )

    def choices(self, suppressed: Suppressed) -> Choices:
        """The same for the delivery."""
        held = None if self.hold_recent_events is None else time.time() - self.hold_recent_events * 3600
        return Choices(suppressed, resend=self.resend, limit=self.limit, hold_since=held)


@dg.op(
    ins={"customers": dg.In(dg.Nothing), "events": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing, is_required=False),
)
def upsert_to_customerio(
    context: dg.AssetExecutionContext, config: Delivery, customerio: CustomerIo, store: Store
) -> Iterator["dg.AssetObservation | dg.Output[None]"]:
    """Sends each day's customers and events that Customer.io has not acknowledged yet, and leaves a receipt for the day.

    A dry run materializes nothing: what it saw is an observation of the asset.
    """
    choices = config.choices(suppressed(customerio, store))
    if config.dry_run:
        seen: set[str] = set()
        for day in context.partition_keys:
            shown = preview(day, shards(store, day), store.ledger, choices, seen)
            yield dg.AssetObservation("customerio_delivery", partition=day, metadata=_outlook(shown, store, day))
        return
    with one_at_a_time(store, context.log.info):
        for day in context.partition_keys:
            started, before = time.monotonic(), customerio.traffic()
            sent = deliver(day, shards(store, day), store.ledger, customerio.client, context.log.info, choices)
            receipt = receipt_of(sent.counts, sent.sample, customerio.traffic() - before, time.monotonic() - started)
            context.add_asset_metadata(receipt, partition_key=day)
    yield dg.Output(None)


@contextmanager
def one_at_a_time(store: Store, say: Callable[[str], None]) -> Iterator[None]:
    """Waits until no other run delivers by the same ledger; what ends the block is what Dagster shall do about it."""
    try:
        with store.ledger.alone(lambda: say("Another run is delivering by this ledger: waiting until it is done.")):
            yield
    except NotDelivered as trouble:
        raise dg.Failure(str(trouble), allow_retries=False) from trouble
    except (Unavailable, DatabaseError) as trouble:
        raise dg.RetryRequested(max_retries=1, seconds_to_wait=TRY_AGAIN_SECONDS) from trouble


def receipt_of(
    counts: Counter[str], sample: list[str], traffic: Counter[str], seconds: float
) -> dict[str, dg.MetadataValue | int | float]:
    """The counts by reason, the requests, and a sample that shows nobody's data."""
    names = ("customers sent", "new customers", "events sent", "customers with nothing new", "events delivered before")
    refused = sum(count for name, count in counts.items() if name.startswith("refused"))
    return {
        **{name: counts[name] for name in names},
        "refused": refused,
        **counts,
        "requests": traffic["requests"],
        "bytes": traffic["bytes"],
        "seconds": round(seconds, 2),
        "events per second": round(counts["events sent"] / seconds, 1) if seconds else 0.0,
        "sample": dg.MetadataValue.json(sample),
    }


def _outlook(report: Report, store: Store, day: str) -> dict[str, dg.MetadataValue | int | bool]:
    """The receipt of a dry run: what would be sent, and what will not."""
    counts = report.counts
    rejects: Counter[str] = Counter()
    for shard in store.tables.read("rejects", day, columns=["what", "reason"]):
        rejects.update(f"{row.what}: {row.reason}" for row in shard.itertuples(index=False))
    return {
        "dry run": True,
        "new customers": counts["new customers"],
        "changed customers": counts["changed customers"],
        "customers with nothing new": counts["customers with nothing new"],
        "events that can trigger campaigns": counts["events that can trigger campaigns"],
        **counts,
        "events by name": dg.MetadataValue.json(dict(report.event_names.most_common(NAMES_SHOWN))),
        "refused by the rules": dg.MetadataValue.json(dict(rejects.most_common())),
        "sample": dg.MetadataValue.json(report.sample),
    }


def suppressed(customerio: CustomerIo, store: Store) -> Suppressed:
    """Who must not be sent: those on the list, and on days before their email was known, too, those with an email on it."""
    listed = customerio.suppressed
    return listed.also(store.identities.had_email(listed.names)) if listed else listed


def shards(store: Store, day: str) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """The day's (customers, events), shard by shard."""
    return zip(store.tables.read("customers", day), store.tables.read("events", day), strict=True)


@dg.graph_asset(
    ins={
        "customers": dg.AssetIn("customers", dagster_type=dg.Nothing),
        "events": dg.AssetIn("events", dagster_type=dg.Nothing),
    },
    partitions_def=days,
    backfill_policy=a_few_days_a_run,
    group_name="customerio_sync",
    kinds={"customerio"},
)
def customerio_delivery(customers: None, events: None) -> None:
    """Customer.io, brought up to date with the day: what was sent, skipped as delivered before, and refused."""
    return upsert_to_customerio(customers=customers, events=events)


@dg.asset_check(asset=customerio_delivery)
def nothing_refused(store: Store) -> dg.AssetCheckResult:
    """Whether Customer.io has refused anything, of any day, that was not accepted since."""
    return or_warning(lambda: _nothing_refused(store))


def _nothing_refused(store: Store) -> dg.AssetCheckResult:
    refused = store.ledger.refused_by_reason()
    return dg.AssetCheckResult(
        passed=not refused, severity=dg.AssetCheckSeverity.WARN, metadata={**refused, "refused": sum(refused.values())}
    )
