"""Reads from Dagster's storage what has happened since the last tick, as the events that `alerts.alerts_of` takes."""

import time
from collections.abc import Iterator, Sequence
from datetime import date, timedelta

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from pydantic import BaseModel

from cio_pipeline.alerts.alerts import Alert, CheckEvaluated, DayOverdue, Delivered, Event, OpenAlert, RunFailed, RunSucceeded
from cio_pipeline.defs.alerts.reasons import reason_of
from cio_pipeline.defs.alerts.runs import (
    ASSET_JOB,
    MAX_RUNS,
    created_at,
    days_from,
    days_of,
    is_ours,
    is_part_of_backfill,
    may_be_retried,
    newest,
    runs_ended,
    was_retried,
)
from cio_pipeline.defs.assets.deliver import customerio_delivery
from cio_pipeline.defs.checks.yesterday import day_due
from cio_pipeline.defs.delivered_days import delivery_of, is_delivered
from cio_pipeline.defs.jobs.hourly import SKIPPED_TAG, customerio_hourly
from cio_pipeline.defs.jobs.sync import customerio_daily, customerio_sync
from cio_pipeline.defs.partitions import DAYS_SETTINGS, day_bounds, now
from cio_pipeline.masking import mask
from cio_pipeline.settings.settings import AlertSettings

MAX_AT_ONCE = 20
"""The most failed runs that are read, and alerts that wait to be sent, at once; the rest stay in Dagster's storage."""

MAX_DELIVERIES = 1000
"""The most deliveries that one tick reads. No minute has that many."""

EVALUATIONS_AT_ONCE = 20
"""The number of evaluations of a check that are read at once."""

OLDEST_SECONDS = 7 * 86400
"""Older events, which are read after the sensor was off, raise no alert."""

MAX_DAYS = 31
"""The most overdue days that are reported after the sensor was off."""

ENDS = {
    dg.DagsterRunStatus.QUEUED: "waits in Dagster's queue",
    dg.DagsterRunStatus.NOT_STARTED: "was not started",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "was canceled",
    dg.DagsterRunStatus.SUCCESS: "ended without delivering all of it",
}
EVALUATED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}


class Position(BaseModel):
    """One target's part of the cursor: how far Dagster's storage has been read for it."""

    failures: int
    """A storage id, as the next two."""
    successes: int
    deliveries: int
    checks: dict[str, float] = {}
    """By check, in seconds since 1970."""
    since: float
    """In seconds since 1970."""
    day: date
    """The last day that was checked."""
    open_alerts: dict[str, OpenAlert] = {}
    """By key."""
    unsent: list[Alert] = []
    """The alerts that wait to be sent."""


def start(instance: dg.DagsterInstance) -> Position:
    """Returns the position of a new target, which gets what happens from now on, and whether yesterday is delivered."""
    deliveries = instance.fetch_materializations(customerio_delivery.key, limit=1).records
    return Position(
        failures=newest(instance, dg.DagsterEventType.RUN_FAILURE),
        successes=newest(instance, dg.DagsterEventType.RUN_SUCCESS),
        deliveries=deliveries[0].storage_id if deliveries else 0,
        since=time.time(),
        day=now().date() - timedelta(days=2),
    )


def events_since(
    instance: dg.DagsterInstance, settings: AlertSettings, position: Position, checks: Sequence[dg.AssetCheckKey]
) -> list[Event]:
    """Returns the events of these checks and our runs after `position`, and moves `position` past them."""
    events = [
        *_deliveries(instance, position),
        *_failures(instance, position),
        *_successes(instance, position),
        *_evaluations(instance, position, checks),
        *_overdue_days(instance, settings, position),
    ]
    return [event for event in events if event.at > now().timestamp() - OLDEST_SECONDS]


def _failures(instance: dg.DagsterInstance, position: Position) -> Iterator[Event]:
    """Yields the runs that have finally failed, up to the first that Dagster may still retry."""
    limit = MAX_AT_ONCE - len(position.unsent)
    for record, run in runs_ended(instance, dg.DagsterEventType.RUN_FAILURE, position.failures, limit):
        if run is not None and may_be_retried(instance, run, record.timestamp, now()):
            return
        position.failures = record.storage_id
        if run is None or was_retried(run) or is_part_of_backfill(run):
            continue
        days = days_of(run)
        yield RunFailed(
            at=record.timestamp,
            page=f"/runs/{run.run_id}",
            root=run.root_run_id or run.run_id,
            job=run.job_name,
            days=days,
            undelivered=tuple(day for day in days if not is_delivered(instance, day, created_at(instance, run))),
            reason=reason_of(record.event_log_entry.get_dagster_event()),
            is_repeated=run.job_name == customerio_hourly.name,
        )


def _successes(instance: dg.DagsterInstance, position: Position) -> Iterator[Event]:
    for record, run in runs_ended(instance, dg.DagsterEventType.RUN_SUCCESS, position.successes):
        position.successes = record.storage_id
        if run is not None and SKIPPED_TAG not in run.tags:
            yield RunSucceeded(record.timestamp, run.job_name)


def _deliveries(instance: dg.DagsterInstance, position: Position) -> Iterator[Event]:
    since = dg.AssetRecordsFilter(customerio_delivery.key, after_storage_id=position.deliveries)
    for record in instance.fetch_materializations(since, limit=MAX_DELIVERIES, ascending=True).records:
        position.deliveries = record.storage_id
        day = record.partition_key
        if day and delivery_of(instance, day, record).is_whole:
            yield Delivered(record.timestamp, day)


def _evaluations(instance: dg.DagsterInstance, position: Position, checks: Sequence[dg.AssetCheckKey]) -> Iterator[Event]:
    """Yields the evaluations check by check, as Dagster cannot list those of all checks in order."""
    for key in checks:
        name = f"{key.name} of {key.asset_key.path[-1]}"
        since = position.checks.get(name, position.since)
        page = f"/assets/{'/'.join(key.asset_key.path)}?view=checks"
        for at, evaluation in reversed([*_evaluations_of(instance, key, since)]):
            position.checks[name] = max(at, position.checks.get(name, 0))
            yield CheckEvaluated(at, name, evaluation.partition, evaluation.passed, mask(evaluation.description or ""), page)


def _evaluations_of(
    instance: dg.DagsterInstance, key: dg.AssetCheckKey, since: float
) -> Iterator[tuple[float, dg.AssetCheckEvaluation]]:
    """Yields the times and results of a check's evaluations after `since`, newest first.

    Dagster lists them by when they were planned, which is not quite when they were made. So it reads on until nothing of what
    it has read at once is after `since`.
    """
    cursor, is_newer = None, True
    while is_newer:
        records = instance.event_log_storage.get_asset_check_execution_history(
            key, EVALUATIONS_AT_ONCE, cursor=cursor, status=EVALUATED
        )
        is_newer = False
        for record in records:
            cursor, event = record.id, record.event
            if event is not None and event.dagster_event is not None and event.timestamp > since:
                is_newer = True
                yield event.timestamp, event.dagster_event.asset_check_evaluation_data


def _overdue_days(instance: dg.DagsterInstance, settings: AlertSettings, position: Position) -> Iterator[Event]:
    """Yields the days that should have been delivered by now and are not, each once."""
    moment, by = now(), f"{settings.delivered_by:%H:%M} {settings.time_zone}"
    if (due := day_due(moment, settings)) is None:
        return
    last = date.fromisoformat(due)
    first = max(position.day + timedelta(days=1), last - timedelta(days=MAX_DAYS - 1), DAYS_SETTINGS.start_date)
    position.day = max(position.day, last)
    for day in days_from(first, last):
        if is_delivered(instance, day):
            continue
        reason, page = _why_not(instance, day)
        yield DayOverdue(moment.timestamp(), day, by, reason, page)


def _why_not(instance: dg.DagsterInstance, day: str) -> tuple[str, str]:
    """Returns what happened to the last run of the day that was started after the day was over, and the page to look at."""
    since = day_bounds(day)[1]
    for job in (customerio_sync.name, ASSET_JOB):
        for run in instance.get_runs(dg.RunsFilter(job_name=job, created_after=since), limit=MAX_RUNS):
            if day in days_of(run) and is_ours(run):
                return f"its last run {ENDS.get(run.status, 'is still running')}.", f"/runs/{run.run_id}"
    page = f"/assets/{'/'.join(customerio_delivery.key.path)}?view=partitions&partition={day}"
    return f"no run of it has been started since: is the schedule {customerio_daily.name} on, and can it start runs?", page
