"""The runs of this code location in Dagster's storage, and its checks."""

from collections.abc import Iterator
from datetime import date, datetime, timedelta
from typing import Literal

import dagster as dg

from cio_pipeline.defs.asset_keys import PREFIX
from cio_pipeline.defs.jobs.backfill import STARTED_BY, customerio_backfill
from cio_pipeline.defs.jobs.checks import customerio_checks
from cio_pipeline.defs.jobs.hourly import customerio_hourly
from cio_pipeline.defs.jobs.redeliver import redeliver_refused
from cio_pipeline.defs.jobs.sync import customerio_daily, customerio_sync
from cio_pipeline.defs.partitions import SCHEDULE_TAG, days_in_tags

RunEnd = Literal[dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_SUCCESS]

MAX_RUNS = 200
"""The most runs that one tick reads. No minute has that many."""

UNDECIDED_SECONDS = 600
"""If Dagster retries a failed run at all, it does so before this time is over."""

JOBS = (
    customerio_sync.name,
    customerio_hourly.name,
    customerio_backfill.name,
    customerio_checks.name,
    redeliver_refused.name,
)
ASSET_JOB = "__ASSET_JOB"
"""Dagster's name for the job of runs that name assets, as its backfills do."""

WILL_RETRY_TAG = "dagster/will_retry"
RETRIED_BY_TAG = "dagster/auto_retry_run_id"


def runs_ended(
    instance: dg.DagsterInstance, end: RunEnd, since: int, limit: int = MAX_RUNS
) -> list[tuple[dg.EventLogRecord, dg.DagsterRun | None]]:
    """Returns the runs that have ended like this after the storage id `since`, in order.

    A run that is not ours, or was deleted, is None.
    """
    wanted = dg.RunStatusChangeRecordsFilter(end, after_storage_id=since)
    records = instance.fetch_run_status_changes(wanted, limit=limit, ascending=True).records
    runs = [(record, instance.get_run_by_id(record.run_id)) for record in records]
    return [(record, run if run is not None and is_ours(run) else None) for record, run in runs]


def newest(instance: dg.DagsterInstance, end: RunEnd) -> int:
    """Returns the storage id of the last run that has ended like this, or 0 if there is none."""
    records = instance.fetch_run_status_changes(end, limit=1).records
    return records[0].storage_id if records else 0


def is_ours(run: dg.DagsterRun) -> bool:
    """Returns whether the run is of one of our jobs, or materializes our assets."""
    return run.job_name in JOBS or any(map(_is_our_asset, run.asset_selection or ()))


def was_started_nightly(run: dg.DagsterRun | None) -> bool:
    """Returns whether a run that has succeeded was started by the nightly schedule."""
    return run is not None and run.tags.get(SCHEDULE_TAG) == customerio_daily.name


def is_part_of_backfill(run: dg.DagsterRun) -> bool:
    """Returns whether `customerio_backfill` started the run; it goes on without it, and names the days that failed.

    A re-execution of such a run by hand has the same tags, but is not part of it.
    """
    return STARTED_BY in run.tags and run.parent_run_id is None


def may_be_retried(instance: dg.DagsterInstance, run: dg.DagsterRun, failed_at: float, now: datetime) -> bool:
    """Returns whether Dagster may still retry the failed run: it has not decided yet, or has not started the retry."""
    will_retry = run.tags.get(WILL_RETRY_TAG) == "true" or (instance.run_retries_enabled and WILL_RETRY_TAG not in run.tags)
    return will_retry and not was_retried(run) and failed_at > now.timestamp() - UNDECIDED_SECONDS


def was_retried(run: dg.DagsterRun) -> bool:
    """Returns whether Dagster has started another run in place of this one."""
    return bool(run.tags.get(RETRIED_BY_TAG))


def created_at(instance: dg.DagsterInstance, run: dg.DagsterRun) -> float:
    """Returns when the run was created, in seconds since 1970, or 0 if Dagster no longer has it."""
    record = instance.get_run_record_by_id(run.run_id)
    return record.create_timestamp.timestamp() if record else 0.0


def days_of(run: dg.DagsterRun) -> tuple[str, ...]:
    """Returns the days that the run's tags name; none if it has no partition."""
    first, last = days_in_tags(run.tags)
    try:
        return tuple(days_from(date.fromisoformat(first), date.fromisoformat(last)))
    except ValueError:
        return ()


def days_from(first: date, last: date) -> Iterator[str]:
    """Yields the days from the first to the last, both included."""
    yield from (str(first + timedelta(days=number)) for number in range((last - first).days + 1))


def checks_of(context: dg.SensorEvaluationContext) -> list[dg.AssetCheckKey]:
    """Returns the checks of our assets, except the one that says the same as `DayOverdue`."""
    repository = context.repository_def
    keys = repository.asset_graph.asset_check_keys if repository else ()
    return sorted(key for key in keys if _is_our_asset(key.asset_key) and key.name != "yesterday_delivered")


def _is_our_asset(key: dg.AssetKey) -> bool:
    return key.path[0] == PREFIX
