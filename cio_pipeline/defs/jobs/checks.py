"""The job `customerio_checks`, which evaluates the checks that need no run of a day, and its schedule."""

import dagster as dg

from cio_pipeline.defs.checks.deliver import no_day_missed, nothing_refused, yesterday_delivered
from cio_pipeline.defs.checks.derive import earlier_days_learned, emails_not_shared, later_days_up_to_date
from cio_pipeline.defs.checks.extract import as_many_events_as_usual
from cio_pipeline.defs.delivered_days import anything_delivered
from cio_pipeline.defs.partitions import DAYS_SETTINGS, daily_at

CHECKS_WITHOUT_A_RUN = [
    as_many_events_as_usual,
    emails_not_shared,
    earlier_days_learned,
    later_days_up_to_date,
    nothing_refused,
    yesterday_delivered,
    no_day_missed,
]

customerio_checks = dg.define_asset_job(
    "customerio_checks",
    dg.AssetSelection.checks(*CHECKS_WITHOUT_A_RUN),
    description="Evaluates the checks that need no run of a day. It reads nothing from PostHog, and sends nothing.",
)


@dg.schedule(
    job=customerio_checks,
    cron_schedule=daily_at(DAYS_SETTINGS.delivered_by),
    execution_timezone=DAYS_SETTINGS.time_zone,
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Evaluates the checks that need no run of a day (the job customerio_checks) at CIO_DELIVERED_BY, once anything"
    " has been delivered. It reads nothing from PostHog, and sends nothing.",
)
def customerio_checks_daily(context: dg.ScheduleEvaluationContext) -> dg.RunRequest | dg.SkipReason:
    """Evaluates the checks at CIO_DELIVERED_BY, even if no run was started."""
    if not anything_delivered(context.instance):
        return dg.SkipReason("Nothing has been delivered yet, so there is nothing to check.")
    return dg.RunRequest()
