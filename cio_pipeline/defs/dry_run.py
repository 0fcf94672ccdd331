"""What a run of some days would send: all is done but the sending, in temporary files, and nothing that is kept changes."""

import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.delivery import preview
from cio_pipeline.customerio.shards import DeliveryOptions
from cio_pipeline.defs.before_delivery import FORGOTTEN, is_backfill, refuse_forgotten_days, refuse_missing_days, shards
from cio_pipeline.defs.deliver import Delivery, events_held, suppressed, tables_to_send
from cio_pipeline.defs.extract import history_is_known, read_day, read_history
from cio_pipeline.defs.failures import failing_in_a_sentence
from cio_pipeline.defs.keys import GROUP, OWNERS, TAGS, key
from cio_pipeline.defs.ledger_mark import ledger_has_forgotten
from cio_pipeline.defs.outlook import Day, Outlook, days_text
from cio_pipeline.defs.partitions import SETTINGS, days_asked_for
from cio_pipeline.defs.receipts import HELD
from cio_pipeline.defs.resources import CustomerIo, PostHog, Store
from cio_pipeline.learning import learn_day, learned_under
from cio_pipeline.pipeline import derive_day
from cio_pipeline.unmatched import unmatched

logger = logging.getLogger(__name__)

dry_run = dg.AssetSpec(
    key("dry_run"),
    group_name=GROUP,
    owners=OWNERS,
    tags=TAGS,
    kinds={"customerio"},
    description="What runs of some days would send: an observation each time that the job customerio_dry_run is launched (Jobs,"
    " customerio_dry_run, Launchpad; from and to are the days). It sends nothing, and changes nothing that is kept.",
)


class DryRun(Delivery):
    """Of which days, and what to do otherwise than usual."""

    first: str = Field(default="yesterday", alias="from", description="The first day, YYYY-MM-DD, or yesterday (UTC).")
    last: str = Field(default="yesterday", alias="to", description="The last day, YYYY-MM-DD, or yesterday (UTC).")


@dg.op(out=dg.Out(dg.Nothing))
@failing_in_a_sentence
def preview_delivery(
    context: dg.OpExecutionContext, config: DryRun, posthog: PostHog, customerio: CustomerIo, store: Store
) -> None:
    """Reads the days from PostHog, derives them, and tells what would be sent: here, and on the page of the asset `dry_run`."""
    keys = days_asked_for(config.first, config.last)
    with store.overlaid(keys[0]) as over:
        options = _read(keys, config, posthog, customerio, over)
        outlook = Outlook(list(_seen(keys, config, over, options)), store.refused_share, options.suppressed.names)
        has_forgotten = ledger_has_forgotten(store)
        outlook.stops = list(_what_would_stop(keys, config, over, outlook.days, has_forgotten=has_forgotten))
        lists = (store.options.event_allowlist, store.options.exclude_attributes)
        outlook.unmatched = list(unmatched(over.tables, keys, *lists))
    context.log_event(dg.AssetObservation(dry_run.key, metadata=outlook.metadata()))
    for line in outlook.lines():
        logger.info("%s", line)


def _read(keys: list[str], config: DryRun, posthog: PostHog, customerio: CustomerIo, store: Store) -> DeliveryOptions:
    """Reads and learns the days, and the history where that was never read; gives how they would be delivered."""
    if not history_is_known(store):
        logger.info("identity_history was never read: it is read for this dry run alone. Materialize it, and it is kept.")
        read_history(posthog, store)
    for day in keys:
        read_day(day, posthog, store)
        learn_day(day, learned_under(store.attributes_from), store.tables, store.identities, store.workers)
    return config.options(suppressed(customerio, store), store.options.allow_consent)


def _seen(keys: list[str], config: DryRun, store: Store, options: DeliveryOptions) -> Iterator[Day]:
    """Each day, derived, and what would be sent of it."""
    new_customers: set[str] = set()
    for day in keys:
        account = derive_day(day, store.tables, store.identities, store.options, workers=store.workers)
        with ExitStack() as stack:
            tables = tables_to_send(stack, store, day, config.held_from)
            report = preview(day, shards(tables, day), store.ledger, options, new_customers)
            report.counts[HELD] += events_held(store, tables, day, options)
        rejects = Counter[tuple[str, str]]()
        for shard in store.tables.read("rejects", day, columns=["what", "reason"]):
            rejects.update(zip(shard["what"], shard["reason"], strict=True))
        yield Day(day, account, report, rejects)


def _what_would_stop(keys: list[str], config: DryRun, store: Store, seen: list[Day], *, has_forgotten: bool) -> Iterator[str]:
    """What would end a run of the days before its first request. They would go a few a run, each within the bounds."""
    for refuse in (refuse_missing_days, partial(refuse_forgotten_days, resend=config.resend)):
        try:
            refuse(store, keys)
        except NotDelivered as trouble:
            yield str(trouble)
    bounds = config.bounds(store, is_backfill=is_backfill({}, keys), has_forgotten=has_forgotten)
    for start in range(0, len(seen), SETTINGS.days_per_run):
        run = seen[start : start + SETTINGS.days_per_run]
        counts = sum((day.report.counts for day in run), Counter[str]())
        try:
            bounds.refuse(counts["new customers"], counts["events that can trigger campaigns"])
        except NotDelivered as trouble:
            why = f"{FORGOTTEN} " if has_forgotten else ""
            yield f"{days_text([day.day for day in run])}: {why}{trouble}"
            return


@dg.job(tags={"dry_run": "true"}, executor_def=dg.in_process_executor)
def customerio_dry_run() -> None:
    """Tells what a run of some days would send. It sends nothing, and changes nothing that is kept."""
    preview_delivery()
