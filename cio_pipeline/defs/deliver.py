"""The sink: brings Customer.io up to date with the day's tables."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta, timezone

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.delivery import deliver
from cio_pipeline.customerio.forecast import unsent_events
from cio_pipeline.customerio.sender import ONLY_PERSONLESS
from cio_pipeline.customerio.shards import DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.defs.before_delivery import (
    Bounded,
    is_backfill,
    refuse_missing_days,
    refuse_too_much,
    shards,
)
from cio_pipeline.defs.checks import or_warning
from cio_pipeline.defs.failures import failing_in_a_sentence, saying_what_is_kept
from cio_pipeline.defs.keys import GROUP, PREFIX, key
from cio_pipeline.defs.partitions import a_few_days_a_run, days, window
from cio_pipeline.defs.receipts import in_one_line
from cio_pipeline.defs.resources import CustomerIo, Store
from cio_pipeline.http_retry import Unavailable
from cio_pipeline.pipeline import derive_day
from cio_pipeline.rules.consent import AllowConsent
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)

TRY_AGAIN_SECONDS = 30
HELD = "events held as too recent"


class Delivery(Bounded):
    """What to do otherwise than usual."""

    resend: bool = Field(
        default=False,
        description="Send again what was delivered, is unchanged or was refused. Attributes never go back in time even so.",
    )
    limit: int | None = Field(default=None, ge=1, description="Send only each day's first so many customers and their events.")
    hold_recent_events: float | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Keep events younger than so many hours, and all that only they bring, for a later run: those under"
        " 72 hours can start campaigns.",
    )

    def options(self, suppressed: Suppressed, allow_consent: AllowConsent) -> DeliveryOptions:
        """The same for the delivery, with what the settings say of whom and what must not be sent."""
        return DeliveryOptions(suppressed, resend=self.resend, limit=self.limit, allow_consent=allow_consent)

    @property
    def held_from(self) -> datetime | None:
        """The time from which on events are kept for a later run."""
        if self.hold_recent_events is None:
            return None
        return datetime.now(timezone.utc) - timedelta(hours=self.hold_recent_events)


@dg.op(
    ins={"customers": dg.In(dg.Nothing), "events": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
)
@failing_in_a_sentence
def upsert_to_customerio(
    context: dg.AssetExecutionContext, config: Delivery, customerio: CustomerIo, store: Store
) -> Iterator["dg.AssetMaterialization | dg.Output[None]"]:
    """Sends each day's customers and events that Customer.io has not acknowledged yet, and leaves a receipt for the day.

    A day's receipt stands as soon as the day is delivered, whatever becomes of the days after it; Dagster itself leaves that of
    the last day, and all of them once more at the end.
    """
    keys = list(context.partition_keys)
    bounds = config.bounds(store, is_backfill=is_backfill(context.run.tags, keys))
    with ExitStack() as stack:
        stack.enter_context(one_at_a_time(context.op_execution_context, store))
        options = config.options(suppressed(customerio, store), store.options.allow_consent)
        to_send = {day: tables_to_send(stack, store, day, config.held_from) for day in keys}
        refuse_missing_days(store, keys)
        refuse_too_much(store, to_send, options, bounds)
        for day, tables in to_send.items():
            started, before = time.monotonic(), customerio.traffic()
            events = tables.version("events", day).rows
            with saying_what_is_kept(store.ledger, day, events):
                sent = deliver(day, shards(tables, day), store.ledger, customerio.client, options, events)
            sent.counts[HELD] += events_held(store, tables, day, options)
            traffic, seconds = customerio.traffic() - before, time.monotonic() - started
            receipt = {**receipt_of(sent.counts, sent.sample, traffic, seconds), **_in_all(store, day, options)}
            context.add_asset_metadata(receipt, partition_key=day)
            logger.info("%s: %s.", day, in_one_line(receipt))
            if day != keys[-1]:
                yield dg.AssetMaterialization(key("customerio_delivery"), partition=day, metadata=receipt)
    yield dg.Output(None)


def tables_to_send(stack: ExitStack, store: Store, day: str, held_from: datetime | None) -> Tables:
    """Where the day's tables are. With held events they are made anew, as if the day had ended before those: an event can bring
    attributes, customers, and earlier events of an anonymous visitor."""
    if held_from is None or window(day)[1] <= held_from:
        return store.tables
    anew = Tables(str(stack.enter_context(temporary_folder())), temporary=True)
    derive_day(day, store.tables, store.identities, store.options, until=held_from, into=anew, workers=store.workers)
    return anew


def events_held(store: Store, tables: Tables, day: str, options: DeliveryOptions) -> int:
    """How many events the whole day would still send and these tables do not."""
    if tables.root == store.tables.root:
        return 0
    unsent = [unsent_events(day, shards(one, day), store.ledger, options) for one in (store.tables, tables)]
    return max(0, unsent[0] - unsent[1])


@contextmanager
def one_at_a_time(context: dg.OpExecutionContext, store: Store) -> Iterator[None]:
    """Waits until no other run delivers by the same ledger. What may pass by itself gets one more try of the step."""
    try:
        with store.ledger.hold_delivery_lock(
            lambda: logger.info("Another run is delivering by this ledger: waiting until it is done.")
        ):
            yield
    except (Unavailable, DatabaseError) as trouble:
        if context.retry_number:
            raise
        raise dg.RetryRequested(max_retries=1, seconds_to_wait=TRY_AGAIN_SECONDS) from trouble


def receipt_of(
    counts: Counter[str], sample: list[str], traffic: Counter[str], seconds: float
) -> dict[str, dg.MetadataValue | int | float]:
    """The counts by reason, the requests, and a sample that shows nobody's data."""
    names = ("customers sent", "new customers", "events sent", "customers with nothing new", "events delivered before")
    also = (ONLY_PERSONLESS, "customers suppressed", "events suppressed")
    refused = sum(count for name, count in counts.items() if name.startswith("refused"))
    return {
        **{name: counts[name] for name in (*names, *also)},
        "refused": refused,
        **counts,
        "requests": traffic["requests"],
        "bytes": traffic["bytes"],
        "seconds": round(seconds, 2),
        "events per second": round(counts["events sent"] / seconds, 1) if seconds else 0.0,
        "sample": dg.MetadataValue.json(sample),
    }


def _in_all(store: Store, day: str, options: DeliveryOptions) -> dict[str, int]:
    """What the ledger has of the day by now, by this run and all before it; and how many people the list names."""
    return {
        "events delivered in all": len(store.ledger.delivered(day)),
        "refused and open": len(store.ledger.refused(day)),
        "people that the suppression list names": options.suppressed.names,
    }


def suppressed(customerio: CustomerIo, store: Store) -> Suppressed:
    """Who must not be sent: those on the list, with all that any day has taught to be the same person (R21)."""
    listed = customerio.suppressed
    return listed.tied(store.identities.tied, store.identities.everybody()) if listed else listed


@dg.graph_asset(
    ins={
        "customers": dg.AssetIn(key("customers"), dagster_type=dg.Nothing),
        "events": dg.AssetIn(key("events"), dagster_type=dg.Nothing),
    },
    partitions_def=days,
    backfill_policy=a_few_days_a_run,
    key_prefix=PREFIX,
    group_name=GROUP,
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
