"""The job `customerio_dry_run`: reports what a run would send. It works on temporary files, and changes nothing stored."""

import logging
from collections import Counter
from collections.abc import Iterator
from functools import partial

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.counts import CAMPAIGN_EVENTS, EVENTS_TOO_RECENT, NEW_CUSTOMERS
from cio_pipeline.customerio.delivery import preview
from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.defs.asset_keys import GROUP, OWNERS, TAGS, asset_key
from cio_pipeline.defs.assets.deliver import DeliveryConfig
from cio_pipeline.defs.delivery.ledger_checkpoint import ledger_is_stale
from cio_pipeline.defs.delivery.preconditions import (
    STALE_LEDGER,
    check_days_are_in_ledger,
    check_no_day_is_missing,
    is_backfill,
)
from cio_pipeline.defs.delivery.run_delivery import events_too_recent, load_suppressed, options_of_day, tables_to_send
from cio_pipeline.defs.failures import with_readable_failures
from cio_pipeline.defs.jobs.dry_run_report import DayReport, DryRunReport
from cio_pipeline.defs.pages.schemas import DRY_RUN_COLUMNS, table_schema
from cio_pipeline.defs.partitions import DAYS_SETTINGS, days_asked_for, days_text
from cio_pipeline.defs.reading import history_is_known, read_day, read_history
from cio_pipeline.defs.resources import CustomerIo
from cio_pipeline.defs.store import Store
from cio_pipeline.posthog.source import EventSource
from cio_pipeline.tables.columns import customers_and_events
from cio_pipeline.unmatched import unmatched

logger = logging.getLogger(__name__)

dry_run = dg.AssetSpec(
    asset_key("dry_run"),
    group_name=GROUP,
    owners=OWNERS,
    tags=TAGS,
    kinds={"customerio"},
    description="What a run would send: an observation for each run of the job customerio_dry_run (Jobs, customerio_dry_run,"
    " Launchpad; from and to are the days). It sends nothing, and changes nothing that is stored.",
    metadata={"dagster/column_schema": table_schema(DRY_RUN_COLUMNS)},
)


class DryRunConfig(DeliveryConfig):
    """The days, and the options of their deliveries."""

    first: str = Field(default="yesterday", alias="from", description="The first day, YYYY-MM-DD, or yesterday (UTC).")
    last: str = Field(default="yesterday", alias="to", description="The last day, YYYY-MM-DD, or yesterday (UTC).")


@dg.op(out=dg.Out(dg.Nothing))
@with_readable_failures
def preview_delivery(
    context: dg.OpExecutionContext,
    config: DryRunConfig,
    posthog: dg.ResourceParam[EventSource],
    customerio: dg.ResourceParam[CustomerIo],
    store: dg.ResourceParam[Store],
) -> None:
    """Reads the days from PostHog, derives them, and reports what would be sent: in the log and on the page of `dry_run`."""
    days = days_asked_for(config.first, config.last)
    with store.overlay(days[0]) as overlay:
        options = _read(days, config, posthog, customerio, overlay)
        report = DryRunReport(
            list(_days_previewed(days, config, overlay, options)),
            store.settings.refused_share,
            options.suppressed.people_listed,
        )
        is_ledger_stale = ledger_is_stale(store, context.instance)
        report.stops = list(_stops(days, config, overlay, report.days, is_ledger_stale=is_ledger_stale))
        lists = (store.options.event_allowlist, store.options.exclude_attributes)
        report.unmatched = list(unmatched(overlay.tables, days, *lists))
    context.log_event(dg.AssetObservation(dry_run.key, metadata=report.metadata()))
    for line in report.lines():
        logger.info("%s", line)


def _read(days: list[str], config: DryRunConfig, posthog: EventSource, customerio: CustomerIo, store: Store) -> DeliveryOptions:
    """Reads and learns the days, and the history if that was never read. Returns the options of the delivery."""
    if not history_is_known(store):
        logger.info("identity_history was never read, so it is read for this dry run only. Materialize it to keep it.")
        read_history(posthog, store)
    for day in days:
        read_day(day, posthog, store)
        store.learn(day)
    return config.delivery_options(load_suppressed(customerio, store.identities), store.options.allow_consent)


def _days_previewed(days: list[str], config: DryRunConfig, store: Store, options: DeliveryOptions) -> Iterator[DayReport]:
    """Derives each day, and yields the report of what would be sent."""
    new_customers: set[str] = set()
    for day in days:
        day_counts = store.derive(day)
        with tables_to_send(store, [day], config.too_recent_from) as to_send:
            of_day = options_of_day(day, to_send[day], store, options)
            report = preview(day, customers_and_events(to_send[day], day), store.ledger, of_day, new_customers)
            report.counts[EVENTS_TOO_RECENT] += events_too_recent(day, store.tables, to_send[day], store, options)
        rejects = Counter[tuple[str, str]]()
        for shard in store.tables.read("rejects", day, columns=["what", "reason"]):
            rejects.update(zip(shard["what"], shard["reason"], strict=True))
        yield DayReport(day, day_counts, report, rejects)


def _stops(
    days: list[str], config: DryRunConfig, store: Store, previewed: list[DayReport], *, is_ledger_stale: bool
) -> Iterator[str]:
    """Yields what would stop a run before its first request. The limits apply to each run, which has `days_per_run` days."""
    for check in (check_no_day_is_missing, partial(check_days_are_in_ledger, resend=config.resend)):
        try:
            check(store, days)
        except NotDelivered as error:
            yield str(error)
    for start in range(0, len(previewed), DAYS_SETTINGS.days_per_run):
        run = previewed[start : start + DAYS_SETTINGS.days_per_run]
        limits = config.run_limits(store, is_backfill=is_backfill({}, days), is_ledger_stale=is_ledger_stale)
        counts = sum((day.delivery.counts for day in run), Counter[str]())
        try:
            limits.check(counts[NEW_CUSTOMERS], counts[CAMPAIGN_EVENTS])
        except NotDelivered as error:
            prefix = f"{STALE_LEDGER} " if is_ledger_stale else ""
            yield f"{days_text([day.day for day in run])}: {prefix}{error}"
            return


@dg.job(
    config={"ops": {"preview_delivery": {"config": {"from": "yesterday", "to": "yesterday"}}}},
    tags={"dry_run": "true"},
    executor_def=dg.in_process_executor,
)
def customerio_dry_run() -> None:
    """Reports what a run of these days would send. It sends nothing, and changes nothing that is stored."""
    preview_delivery()
