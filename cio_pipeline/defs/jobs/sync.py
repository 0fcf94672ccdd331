"""The job `customerio_sync`, and its daily schedule."""

from datetime import UTC, datetime

import dagster as dg

from cio_pipeline.defs.assets.deliver import customerio_delivery
from cio_pipeline.defs.assets.derive import customers_events_rejects
from cio_pipeline.defs.assets.extract import identities, identity_history, posthog_events
from cio_pipeline.defs.partitions import DAYS_SETTINGS, RANGE_END, RANGE_START, daily_at, daily_partitions

customerio_sync = dg.define_asset_job(
    "customerio_sync",
    dg.AssetSelection.assets(posthog_events, identities, identity_history, customers_events_rejects, customerio_delivery),
    description="Delivers days of PostHog events to Customer.io. The dialog of partitions shows only the last 90 days: for"
    " older ones, and for long ranges, use the job customerio_backfill.",
)


DESCRIPTION = (
    "Extracts and delivers yesterday (UTC), and the CIO_LATE_DAYS days before it for events that arrived late, in one run of"
    " the job customerio_sync at CIO_NIGHTLY_AT. It is off until you switch it on."
)


@dg.schedule(
    job=customerio_sync,
    cron_schedule=daily_at(DAYS_SETTINGS.nightly_at),
    execution_timezone=DAYS_SETTINGS.time_zone,
    description=DESCRIPTION,
)
def customerio_daily(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Requests the days before the time of the tick, which *Preview tick result* lets you choose. Future days are skipped."""
    if context.scheduled_execution_time > datetime.now(UTC):
        return dg.SkipReason("This tick is in the future: its days are not over.")
    with dg.partition_loading_context(effective_dt=context.scheduled_execution_time):
        days = daily_partitions.get_partition_keys()[-1 - DAYS_SETTINGS.late_days :]
    if not days:
        return dg.SkipReason("There is no partition yet: CIO_START_DATE is not over.")
    return dg.RunRequest(run_key=days[-1], tags={RANGE_START: days[0], RANGE_END: days[-1]})
