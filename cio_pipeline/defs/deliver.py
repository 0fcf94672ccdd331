"""The sink: brings Customer.io up to date with the day's tables."""

import time
from collections import Counter

import dagster as dg

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.delivery import deliver
from cio_pipeline.defs.partitions import a_few_days_a_run, days
from cio_pipeline.defs.resources import CustomerIo, Store
from cio_pipeline.http import Unavailable

TRY_AGAIN_SECONDS = 30


@dg.op(
    pool="customerio",
    ins={"customers": dg.In(dg.Nothing), "events": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
)
def upsert_to_customerio(context: dg.AssetExecutionContext, customerio: CustomerIo, store: Store) -> None:
    """Sends each day's customers and events that Customer.io has not acknowledged yet, and leaves a receipt for the day."""
    for day in context.partition_keys:
        started, before = time.monotonic(), (customerio.client.requests, customerio.client.bytes)
        shards = zip(store.tables.read("customers", day), store.tables.read("events", day), strict=True)
        try:
            counts = deliver(day, shards, store.ledger, customerio.client, context.log.info)
        except NotDelivered as trouble:
            raise dg.Failure(str(trouble), allow_retries=False) from trouble
        except Unavailable as trouble:
            raise dg.RetryRequested(max_retries=1, seconds_to_wait=TRY_AGAIN_SECONDS) from trouble
        sent = {"requests": customerio.client.requests - before[0], "bytes": customerio.client.bytes - before[1]}
        context.add_asset_metadata(_receipt(counts, sent, time.monotonic() - started), partition_key=day)


def _receipt(counts: Counter[str], sent: dict[str, int], seconds: float) -> dict[str, int | float]:
    names = ("customers sent", "events sent", "customers with nothing new", "events delivered before")
    refused = sum(count for name, count in counts.items() if name.startswith("refused"))
    first = {name: counts[name] for name in names}
    return {**first, "refused": refused, **counts, **sent, "seconds": round(seconds, 2)}


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
    refused = store.ledger.refused_by_reason()
    return dg.AssetCheckResult(
        passed=not refused, severity=dg.AssetCheckSeverity.WARN, metadata={**refused, "refused": sum(refused.values())}
    )
