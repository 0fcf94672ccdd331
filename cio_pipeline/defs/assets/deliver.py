"""The asset `customerio_delivery`: posts the operations of the day's tables that the ledger does not record as delivered."""

import logging
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.day_order import deliver_each
from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.defs.asset_keys import DELIVERY, GROUP, OWNERS, PREFIX, TAGS, asset_key
from cio_pipeline.defs.delivery.preconditions import (
    RunLimitsConfig,
    check_days_are_in_ledger,
    check_derived,
    check_no_day_is_missing,
    is_backfill,
)
from cio_pipeline.defs.delivery.run_delivery import prepare_delivery, receipt_of, tables_to_send, wait_for_delivery_lock
from cio_pipeline.defs.failures import with_readable_failures
from cio_pipeline.defs.pages.receipts import MEANING, TYPES, in_one_line
from cio_pipeline.defs.pages.schemas import table_schema
from cio_pipeline.defs.partitions import backfill_policy, daily_partitions
from cio_pipeline.defs.resources import CustomerIo
from cio_pipeline.defs.store import Store
from cio_pipeline.rules.consent import AllowConsent

logger = logging.getLogger(__name__)

LONGEST_PAUSE = timedelta(hours=36)
"""After this time without a delivery of any day, Dagster shows the asset as overdue. See also `yesterday_delivered`."""


class DeliveryConfig(RunLimitsConfig):
    """The options of one run's delivery."""

    resend: bool = Field(
        default=False,
        description="Also send what was delivered, is unchanged or was refused. Attributes still never go back in time.",
    )
    limit: int | None = Field(
        default=None, ge=1, description="Send only this many customers of each day, the first ones, with their events."
    )
    hold_recent_events: float | None = Field(
        default=None,
        ge=0,
        le=1_000_000,
        description="Hold back events younger than this many hours, and the attributes, customers and stitched events that come"
        " only from them, for a later run: events under 72 hours old can start campaigns.",
    )

    def delivery_options(self, suppressed: Suppressed, allow_consent: AllowConsent) -> DeliveryOptions:
        """Returns the delivery's options, together with those of the settings."""
        return DeliveryOptions(suppressed, resend=self.resend, limit=self.limit, allow_consent=allow_consent)

    @property
    def too_recent_from(self) -> datetime | None:
        """The time from which events are too recent, and left to a later run, or None if none are."""
        if self.hold_recent_events is None:
            return None
        return datetime.now(UTC) - timedelta(hours=self.hold_recent_events)


@dg.op(
    ins={"customers": dg.In(dg.Nothing), "events": dg.In(dg.Nothing)},
    out=dg.Out(dg.Nothing),
)
@with_readable_failures
def upsert_to_customerio(
    context: dg.AssetExecutionContext,
    config: DeliveryConfig,
    customerio: dg.ResourceParam[CustomerIo],
    store: dg.ResourceParam[Store],
) -> Iterator["dg.AssetMaterialization | dg.Output[None]"]:
    """Sends each day's customers and events that Customer.io has not acknowledged yet, and records a receipt of the day.

    As soon as a day is delivered, it is materialized with its receipt, so that no later failure can undo that: each day but the
    last by a materialization of its own. The op's output then materializes all days, the last for the first time.
    """
    days = list(context.partition_keys)
    with wait_for_delivery_lock(context.op_execution_context, store):
        store = store.pinned()  # what is checked is what is sent
        check_derived(store, days)
        check_no_day_is_missing(store, days)
        check_days_are_in_ledger(store, days, resend=config.resend)
        backfill = is_backfill(context.run.tags, days)
        delivery = prepare_delivery(config, store, customerio, context.instance, is_backfill=backfill)
        with tables_to_send(store, days, config.too_recent_from) as to_send:
            delivery.check_limits(to_send)
            delivered = deliver_each(days, lambda day: delivery.deliver(day, to_send[day], whole_day=store.tables))
            for day, (report, counts), more_follow in delivered:
                logger.info("%s: %s.", day, in_one_line(counts))
                day_receipt = receipt_of(store, day, counts, report.sample)
                context.add_asset_metadata(day_receipt, partition_key=day)
                if more_follow:
                    yield dg.AssetMaterialization(DELIVERY, partition=day, metadata=day_receipt)
        if store.first_day_of_ledger is not None:  # CIO_LEDGER_DAYS: earlier days can then be sent only with resend
            store.ledger.delete_before(store.first_day_of_ledger)
    yield dg.Output(None)


# A graph, so that the op has a name of its own in runs, in the launchpad, and in retries.
@dg.graph_asset(
    name="customerio_delivery",
    ins={
        "customers": dg.AssetIn(asset_key("customers"), dagster_type=dg.Nothing),
        "events": dg.AssetIn(asset_key("events"), dagster_type=dg.Nothing),
    },
    partitions_def=daily_partitions,
    backfill_policy=backfill_policy,
    key_prefix=PREFIX,
    group_name=GROUP,
    kinds={"customerio"},
    owners=OWNERS,
    tags=TAGS,
    metadata={"dagster/column_schema": table_schema(MEANING, TYPES)},
)
def _receipt(customers: None, events: None) -> None:
    """The receipt of a day's delivery to Customer.io: what all runs of the day have done together, and what the last one did.

    The dialog of partitions shows only the last 90 days. For older ones, use the job customerio_backfill.
    """
    return upsert_to_customerio(customers=customers, events=events)


# graph_asset has no parameter for a freshness policy.
customerio_delivery = _receipt.map_asset_specs(
    lambda spec: spec.replace_attributes(freshness_policy=dg.FreshnessPolicy.time_window(fail_window=LONGEST_PAUSE))
)
