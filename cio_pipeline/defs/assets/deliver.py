"""The asset `customerio_delivery`: brings Customer.io up to date with the day's tables."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.delivery import Report, deliver
from cio_pipeline.customerio.forecast import unsent_events
from cio_pipeline.customerio.shards import DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.customerio.undecided import retry_undecided
from cio_pipeline.defs.assets import ledger_checkpoint
from cio_pipeline.defs.assets.before_delivery import (
    RunLimitsConfig,
    is_backfill,
    refuse_days_before_ledger,
    refuse_missing_days,
    refuse_too_much,
    shards,
)
from cio_pipeline.defs.failures import delivered_count_in_errors, with_readable_failures
from cio_pipeline.defs.keys import GROUP, OWNERS, PREFIX, TAGS, key
from cio_pipeline.defs.pages.receipts import (
    HELD,
    MEANING,
    TYPES,
    in_one_line,
    last_days,
    receipt,
    run_counts,
)
from cio_pipeline.defs.pages.schemas import described
from cio_pipeline.defs.partitions import backfill_policy, days, window
from cio_pipeline.defs.resources import CustomerIo, Store
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.pipeline import derive_day
from cio_pipeline.rules.consent import AllowConsent
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)

RETRY_SECONDS = 30
LONGEST_PAUSE = timedelta(hours=36)
"""After this long without a delivery of any day, Dagster shows the asset as overdue. See also `yesterday_delivered`."""


class DeliveryConfig(RunLimitsConfig):
    """Options of one run's delivery."""

    resend: bool = Field(
        default=False,
        description="Send again what was delivered, is unchanged or was refused. Attributes never go back in time even so.",
    )
    limit: int | None = Field(
        default=None, ge=1, description="Send only this many customers of each day, the first ones, with their events."
    )
    hold_recent_events: float | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Hold back events younger than this many hours, and whatever only they bring, for a later run: events"
        " under 72 hours old can start campaigns.",
    )

    def options(self, suppressed: Suppressed, allow_consent: AllowConsent) -> DeliveryOptions:
        """The delivery's options, with those that the settings determine."""
        return DeliveryOptions(suppressed, resend=self.resend, limit=self.limit, allow_consent=allow_consent)

    @property
    def held_from(self) -> datetime | None:
        """The time from which events are held back for a later run; None where none are."""
        if self.hold_recent_events is None:
            return None
        return datetime.now(UTC) - timedelta(hours=self.hold_recent_events)


@dg.op(
    ins={"customers": dg.In(dg.Nothing), "events": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
)
@with_readable_failures
def upsert_to_customerio(
    context: dg.AssetExecutionContext, config: DeliveryConfig, customerio: CustomerIo, store: Store
) -> Iterator["dg.AssetMaterialization | dg.Output[None]"]:
    """Sends each day's customers and events that Customer.io has not acknowledged yet, and leaves a receipt for the day.

    A day's receipt is recorded as soon as the day is delivered, so that no later failure can prevent it. Dagster itself records
    that of the last day, and all of them once more at the end.
    """
    keys = list(context.partition_keys)
    with ExitStack() as stack:
        stack.enter_context(one_delivery_at_a_time(context.op_execution_context, store))
        is_ledger_stale = ledger_checkpoint.ledger_is_stale(store, context.instance)
        limits = config.run_limits(store, is_backfill=is_backfill(context.run.tags, keys), is_ledger_stale=is_ledger_stale)
        options = config.options(suppressed(customerio, store), store.options.allow_consent)
        to_send = {day: tables_to_send(stack, store, day, config.held_from) for day in keys}
        refuse_missing_days(store, keys)
        refuse_days_before_ledger(store, keys, resend=config.resend)
        refuse_too_much(store, to_send, options, limits, is_ledger_stale=is_ledger_stale)

        def deliver_day(day: str) -> tuple[Report, dict[str, int | float]]:
            started, before = time.monotonic(), customerio.traffic()
            events = to_send[day].version("events", day).rows
            with delivered_count_in_errors(store.ledger, day, events):
                sent = deliver(day, shards(to_send[day], day), store.ledger, customerio.client, options, events)
            if not is_ledger_stale or config.max_campaign_events is not None:
                ledger_checkpoint.save(store)
            sent.counts[HELD] += events_held(store, to_send[day], day, options)
            run = run_counts(sent.counts, customerio.traffic() - before, time.monotonic() - started)
            run["people that the suppression list names"] = options.suppressed.names
            return sent, run

        for day, (sent, run), more_follow in retry_undecided(keys, deliver_day):
            logger.info("%s: %s.", day, in_one_line(run))
            day_receipt = receipt_of(store, day, run, sent.sample)
            context.add_asset_metadata(day_receipt, partition_key=day)
            if more_follow:
                yield dg.AssetMaterialization(key("customerio_delivery"), partition=day, metadata=day_receipt)
        if store.first_day_of_ledger is not None:
            store.ledger.delete_before(store.first_day_of_ledger)
    yield dg.Output(None)


def tables_to_send(stack: ExitStack, store: Store, day: str, held_from: datetime | None) -> Tables:
    """The day's tables. If some of its events are held back, the tables are derived again without them, as an event can bring
    attributes, customers, and earlier events of an anonymous visitor."""
    if held_from is None or window(day)[1] <= held_from:
        return store.tables
    without_held = Tables(str(stack.enter_context(temporary_folder())), temporary=True)
    derive_day(day, store.tables, store.identities, store.options, until=held_from, into=without_held, workers=store.workers)
    return without_held


def events_held(store: Store, tables: Tables, day: str, options: DeliveryOptions) -> int:
    """How many unsent events of the day are not in these tables."""
    if tables.root == store.tables.root:
        return 0
    unsent = [unsent_events(day, shards(one, day), store.ledger, options) for one in (store.tables, tables)]
    return max(0, unsent[0] - unsent[1])


@contextmanager
def one_delivery_at_a_time(context: dg.OpExecutionContext, store: Store) -> Iterator[None]:
    """Waits until no other run delivers with the same ledger. After a transient error the step is retried once."""
    try:
        with store.ledger.hold_delivery_lock(
            lambda: logger.info("Another run is delivering by this ledger: waiting until it is done.")
        ):
            yield
    except (Unavailable, DatabaseError) as error:
        if context.retry_number:
            raise
        raise dg.RetryRequested(max_retries=1, seconds_to_wait=RETRY_SECONDS) from error


def receipt_of(store: Store, day: str, run: dict[str, int | float], sample: list[str]) -> dict[str, dg.MetadataValue | int]:
    """The day's receipt, from what the ledger now records of it, and what a run did (`run_counts`)."""
    totals = store.ledger.totals(day)
    return receipt(totals, run, sample, last_days(day, store, totals), store.connected)


def suppressed(customerio: CustomerIo, store: Store) -> Suppressed:
    """Who must not be sent: the people on the list, with every id and email that any day has linked to them (R21)."""
    return customerio.suppressed.with_linked(store.identities.linked, store.identities.all_names())


@dg.graph_asset(
    ins={
        "customers": dg.AssetIn(key("customers"), dagster_type=dg.Nothing),
        "events": dg.AssetIn(key("events"), dagster_type=dg.Nothing),
    },
    partitions_def=days,
    backfill_policy=backfill_policy,
    key_prefix=PREFIX,
    group_name=GROUP,
    kinds={"customerio"},
    owners=OWNERS,
    tags=TAGS,
    metadata={"dagster/column_schema": described(MEANING, TYPES)},
)
def customerio_delivery(customers: None, events: None) -> None:
    """The receipt of a day's delivery to Customer.io: what all runs of the day have done together, and what the last one did.

    The dialog of partitions shows only the last 90 days: for older ones use the job customerio_backfill.
    """
    return upsert_to_customerio(customers=customers, events=events)


customerio_delivery = customerio_delivery.map_asset_specs(
    lambda spec: spec.replace_attributes(freshness_policy=dg.FreshnessPolicy.time_window(fail_window=LONGEST_PAUSE))
)
