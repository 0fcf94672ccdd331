"""The job `customerio_hourly`: delivers what today, which is not over, has so far (R22), and the schedule that runs it.

Like a dry run, it works on temporary tables and identities on top of the stored ones. It stores only what Customer.io has
acknowledged, in the ledger. So it leaves no partition, table or identity of half a day, and the nightly run processes the whole
day as if there had been no hourly run, but does not send again what was delivered. It leaves an observation, as a
materialization would show the day as complete, and backfills would ask for a partition of today.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import dagster as dg

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.delivery.preconditions import RunLimitsConfig, check_no_day_is_missing
from cio_pipeline.defs.delivery.run_delivery import prepare_delivery, receipt_of
from cio_pipeline.defs.failures import MAX_RETRIES, with_readable_failures
from cio_pipeline.defs.pages.receipts import in_one_line
from cio_pipeline.defs.pages.tables import table
from cio_pipeline.defs.partitions import DAYS_SETTINGS, day_bounds, now
from cio_pipeline.defs.reading import history_is_known, read_day
from cio_pipeline.defs.resources import CustomerIo
from cio_pipeline.defs.store import Store
from cio_pipeline.errors import PipelineError
from cio_pipeline.pipeline.accounting import DayCounts, discrepancies
from cio_pipeline.posthog.source import EventSource, NothingSoFar
from cio_pipeline.rules.classify import TO_SEND
from cio_pipeline.tables.files import temporary_folder
from cio_pipeline.tables.tables import Tables

logger = logging.getLogger(__name__)

SETTLED = timedelta(minutes=5)
"""Events that are younger than this, or that happened less than this before the end of a batch export's last run, are left to
the next run (R22: a day that is not over). PostHog receives events of the same minutes in any order, and an email that arrives
after other events of its person would leave these with another customer."""

DAYS_TAG = "days"
"""The tag that shows in the list of runs which part of the day a run delivers."""

SKIPPED_TAG = "skipped"
"""The tag that shows there why a run has sent nothing."""

LONGEST_SECONDS = 6 * 3600
"""The longest that a run may take. Until it ends, the schedule starts no other run, even if its machine is gone."""

QUERIES_AN_HOUR = 2400
"""The number of queries that PostHog allows a project (posthog.com/docs/api)."""

UNFINISHED = [
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


class NotNow(PipelineError):
    """A run leaves its work to another one, which is not a failure; the message says why."""


@dataclass(frozen=True)
class SoFar:
    """The part of an open day before a time."""

    until: datetime
    day_counts: DayCounts
    reading: Mapping[str, int]
    """The counts of the reading (`EventStream.stats`)."""
    waiting: int
    """The number of events that wait for the whole day."""


@dg.op(out=dg.Out(dg.Nothing))
@with_readable_failures
def deliver_so_far(
    context: dg.OpExecutionContext,
    config: RunLimitsConfig,
    posthog: dg.ResourceParam[EventSource],
    customerio: dg.ResourceParam[CustomerIo],
    store: dg.ResourceParam[Store],
) -> None:
    """Sends the events of today (UTC) that Customer.io has not acknowledged yet, except those of the last five minutes."""
    began = now()
    day = str(began.date())
    try:
        check_may_begin(store, day)
        until = settled_until(day, posthog, began)
        context.instance.add_run_tags(context.run_id, {DAYS_TAG: f"{day} until {until:%H:%M} UTC (open)"})
        with store.overlay(day) as today:
            so_far = derive_so_far(day, until, posthog, today)
            metadata = deliver_part(day, so_far, config, customerio, store, today, context.instance)
    except (NotNow, NothingSoFar) as why:
        logger.info("%s", why)
        context.instance.add_run_tags(context.run_id, {SKIPPED_TAG: str(why)})
    else:
        context.log_event(dg.AssetObservation(DELIVERY, partition=day, metadata=metadata))


def check_may_begin(store: Store, day: str) -> None:
    """Raises `NotNow` if the days before it are not learned yet, or another run is delivering."""
    if not history_is_known(store):
        raise NotNow("identity_history was never read, which a run of customerio_sync does: nothing was sent.")
    try:
        check_no_day_is_missing(store, [day])
    except NotDelivered as missing:
        raise NotNow(str(missing)) from None
    with delivery_lock_or_skip(store):
        pass


def settled_until(day: str, posthog: EventSource, began: datetime) -> datetime:
    """Returns the time up to which the open day is delivered: `SETTLED` before the time up to which its events are available.

    began: when the run began. Raises `NothingSoFar`, or `NotNow` if the day has only just begun.
    """
    start = day_bounds(day)[0]
    until = posthog.readable_until(start, began) - SETTLED
    if until <= start:
        raise NotNow(f"{day} has only just begun: nothing was sent.")
    return until


@contextmanager
def delivery_lock_or_skip(store: Store) -> Iterator[None]:
    """Holds the delivery lock during the block. Raises `NotNow` if another run holds it."""

    def leave() -> None:
        raise NotNow("Another run is delivering with this ledger: nothing was sent, the next run will send it.")

    with store.ledger.hold_delivery_lock(leave):
        yield


def derive_so_far(day: str, until: datetime, posthog: EventSource, today: Store) -> SoFar:
    """Extracts, learns and derives the events of the open day before `until`, in `today`, an overlay that begins with it."""
    _, reading = read_day(day, posthog, today, until)
    today.learn(day)
    day_counts = today.derive(day, replace(today.options, day_is_open=True))
    if wrong := discrepancies(day, day_counts, today.tables):
        raise NotDelivered(
            f"Not every event of {day} is accounted for (R15): {', '.join(wrong)}. Nothing was sent: open an issue with this"
            " message."
        )
    return SoFar(until, day_counts, reading, _waiting(day, day_counts, today))


def _waiting(day: str, day_counts: DayCounts, today: Store) -> int:
    """Returns how many more events would be sent if the day had ended now (R22)."""
    if not (today.options.identify_by_email or today.options.stitches):
        return 0
    with temporary_folder() as folder:
        whole = today.derive(day, into=Tables(str(folder), temporary=True))
    return max(0, whole.outcomes[TO_SEND] + whole.stitched - day_counts.outcomes[TO_SEND])


def deliver_part(
    day: str,
    so_far: SoFar,
    config: RunLimitsConfig,
    customerio: CustomerIo,
    store: Store,
    today: Store,
    instance: dg.DagsterInstance,
) -> dict[str, dg.MetadataValue | int | str]:
    """Sends what `today` has of the day. Returns the metadata of the observation.

    New customers of the day's earlier runs count towards the limit, or many small runs would exceed it. Raises `NotNow` if the
    day is over by now and another run has learned the whole of it, as what that run sends is newer.
    """
    with delivery_lock_or_skip(store):
        if not store.identities.unlearned([day]):
            raise NotNow(f"{day} is over, and another run delivers the whole of it: nothing was sent.")
        created = store.ledger.totals(day).new_customers
        delivery = prepare_delivery(
            config, store, customerio, instance, is_backfill=False, identities=today.identities, created_earlier_today=created
        )
        delivery.check_limits({day: today.tables})
        report, counts = delivery.deliver(day, today.tables)
    logger.info("%s until %s UTC, so far: %s.", day, f"{so_far.until:%H:%M}", in_one_line(counts))
    logger.info("%s events wait for the whole day (R22).", f"{so_far.waiting:,}")
    return _observation(so_far, dict(receipt_of(today, day, counts, report.sample)))


def _observation(so_far: SoFar, receipt: dict[str, dg.MetadataValue | int]) -> dict[str, dg.MetadataValue | int | str]:
    """Returns the receipt, which says first that the day is open."""
    receipt.pop("dagster/partition_row_count")
    outcomes = so_far.day_counts.outcomes.most_common()
    return {
        "so far": f"Until {so_far.until:%H:%M} UTC. The day is open: the nightly run delivers the rest.",
        **receipt,
        "events so far": so_far.day_counts.outcomes.total(),
        "events that wait for the whole day": so_far.waiting,
        "outcomes": table([{"count": count, "what": name} for name, count in outcomes if count]),
        "queries to PostHog": so_far.reading.get("queries", 0),
        "queries that PostHog allows an hour": QUERIES_AN_HOUR,
        "what the reading took": table([{"count": count, "what": name} for name, count in so_far.reading.items()]),
    }


@dg.job(
    tags={MAX_RETRIES: "0", "dagster/max_runtime": str(LONGEST_SECONDS)},
    executor_def=dg.in_process_executor,
)
def customerio_hourly() -> None:
    """Delivers what today has so far; the nightly run delivers the rest. It stores no table and completes no partition."""
    deliver_so_far()


@dg.schedule(
    job=customerio_hourly,
    cron_schedule=DAYS_SETTINGS.hourly_cron,
    execution_timezone=DAYS_SETTINGS.time_zone,
    description="Delivers what today (UTC) has so far, at CIO_HOURLY_CRON. It is off until you switch it on. Each run reads"
    " all of today, so 24 runs read about 12 times the bytes of a day; PostHog allows API queries 20 GB an hour, and up to 24"
    " hours of that can be saved up. Of the 2,400 queries that it allows in an hour, a run takes about four, and one more for"
    " each 40,000 events.",
)
def customerio_hourly_schedule(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Starts a run, unless another is not finished."""
    unfinished = context.instance.get_runs(dg.RunsFilter(job_name=customerio_hourly.name, statuses=UNFINISHED), limit=1)
    if unfinished:
        return dg.SkipReason(f"The run {unfinished[0].run_id} of customerio_hourly has not finished, so no other is started.")
    return dg.RunRequest()
