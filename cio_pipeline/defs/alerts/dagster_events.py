"""What has happened in Dagster since the last tick, read from its storage, as the events that `alerts.alerts_of` takes."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Literal

import dagster as dg
from dagster._core.storage.asset_check_execution_record import AssetCheckExecutionRecordStatus
from pydantic import BaseModel

from cio_pipeline.alerts.alerts import Alert, CheckEvaluated, DayOverdue, Delivered, Event, OpenAlert, RunFailed, RunSucceeded
from cio_pipeline.defs.assets.deliver import customerio_delivery
from cio_pipeline.defs.checks.yesterday import began_at, day_due, is_delivered, is_whole
from cio_pipeline.defs.failures import reason_of
from cio_pipeline.defs.jobs.backfill import STARTED_BY, customerio_backfill
from cio_pipeline.defs.jobs.checks import customerio_checks
from cio_pipeline.defs.jobs.hourly import SKIPPED, customerio_hourly
from cio_pipeline.defs.jobs.redeliver import redeliver_refused
from cio_pipeline.defs.jobs.sync import customerio_daily, customerio_sync
from cio_pipeline.defs.keys import PREFIX
from cio_pipeline.defs.partitions import SETTINGS, days_in_tags, window
from cio_pipeline.masking import mask
from cio_pipeline.settings.settings import AlertSettings

RunEnd = Literal[dg.DagsterEventType.RUN_FAILURE, dg.DagsterEventType.RUN_SUCCESS]

MAX_AT_ONCE = 20
"""The most failed runs that are read, and alerts that wait to be sent, at once; the rest stays in Dagster's storage."""

MAX_RUNS, MAX_DELIVERIES, MAX_EVALUATIONS = 200, 1000, 20
"""The most that one tick reads (evaluations: of each check). No minute has that many."""

OLDEST_SECONDS = 7 * 86400
"""Older events, read after the sensor was off, raise no alert."""

UNDECIDED_SECONDS = 600
"""If Dagster retries a failed run at all, it does so before this is over."""

MAX_DAYS = 31
"""The most overdue days that are reported after the sensor was off."""

JOBS = (
    customerio_sync.name,
    customerio_hourly.name,
    customerio_backfill.name,
    customerio_checks.name,
    redeliver_refused.name,
)
ASSET_JOB = "__ASSET_JOB"
"""Dagster's name for the job of runs that name assets, as its backfills do."""

ENDS = {
    dg.DagsterRunStatus.QUEUED: "waits in Dagster's queue",
    dg.DagsterRunStatus.NOT_STARTED: "was not started",
    dg.DagsterRunStatus.FAILURE: "failed",
    dg.DagsterRunStatus.CANCELED: "was canceled",
    dg.DagsterRunStatus.SUCCESS: "ended without delivering it",
}
EVALUATED = {AssetCheckExecutionRecordStatus.SUCCEEDED, AssetCheckExecutionRecordStatus.FAILED}
WILL_RETRY, RETRIED_BY = "dagster/will_retry", "dagster/auto_retry_run_id"
SCHEDULE = "dagster/schedule_name"


class Position(BaseModel):
    """One target's part of the cursor: how far Dagster's storage was read for it.

    failures, successes, deliveries: storage ids; checks, since: timestamps; day: the last day that was checked; open_alerts: by
    key; unsent: alerts that wait.
    """

    failures: int
    successes: int
    deliveries: int
    checks: dict[str, float] = {}
    since: float
    day: date
    open_alerts: dict[str, OpenAlert] = {}
    unsent: list[Alert] = []


def now() -> datetime:
    """The clock that decides whether a day is late."""
    return datetime.now(UTC)


def start(instance: dg.DagsterInstance) -> Position:
    """Where a new target starts: it gets what happens from now on, and whether yesterday is delivered."""
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
    """The events after `position`, of these checks and our runs. Moves `position` past them."""
    events = [
        *_deliveries(instance, position),
        *_failures(instance, position),
        *_successes(instance, position),
        *_evaluations(instance, position, checks),
        *_overdue_days(instance, settings, position),
    ]
    return [event for event in events if event.at > now().timestamp() - OLDEST_SECONDS]


def _failures(instance: dg.DagsterInstance, position: Position) -> Iterator[Event]:
    """The runs that have finally failed; stops at the first that Dagster may still retry."""
    limit = MAX_AT_ONCE - len(position.unsent)
    for record, run in runs_ended(instance, dg.DagsterEventType.RUN_FAILURE, position.failures, limit):
        if run is not None and _is_undecided(instance, run, record.timestamp):
            return
        position.failures = record.storage_id
        if run is None or run.tags.get(RETRIED_BY) or _is_of_a_backfill(run):
            continue
        days = days_of(run)
        yield RunFailed(
            at=record.timestamp,
            page=f"/runs/{run.run_id}",
            root=run.root_run_id or run.run_id,
            job=run.job_name,
            days=days,
            undelivered=tuple(day for day in days if not _is_delivered_since(instance, day, _started(instance, run))),
            reason=reason_of(record.event_log_entry.get_dagster_event()),
            is_repeated=run.job_name == customerio_hourly.name,
        )


def _is_of_a_backfill(run: dg.DagsterRun) -> bool:
    """Whether `customerio_backfill` started it, which goes on and names the days that failed. A re-execution by hand of such a
    run has the same tags, but is not."""
    return STARTED_BY in run.tags and run.parent_run_id is None


def _is_undecided(instance: dg.DagsterInstance, run: dg.DagsterRun, at: float) -> bool:
    """Whether Dagster has not decided yet whether to retry the failed run, or has not started the retry."""
    will_retry = run.tags.get(WILL_RETRY) == "true" or (instance.run_retries_enabled and WILL_RETRY not in run.tags)
    return will_retry and not run.tags.get(RETRIED_BY) and at > now().timestamp() - UNDECIDED_SECONDS


def _successes(instance: dg.DagsterInstance, position: Position) -> Iterator[Event]:
    for record, run in runs_ended(instance, dg.DagsterEventType.RUN_SUCCESS, position.successes):
        position.successes = record.storage_id
        if run is not None and SKIPPED not in run.tags:
            yield RunSucceeded(record.timestamp, run.job_name)


def _deliveries(instance: dg.DagsterInstance, position: Position) -> Iterator[Event]:
    since = dg.AssetRecordsFilter(customerio_delivery.key, after_storage_id=position.deliveries)
    for record in instance.fetch_materializations(since, limit=MAX_DELIVERIES, ascending=True).records:
        position.deliveries = record.storage_id
        if record.partition_key and is_whole(record.partition_key, began_at(instance, record)):
            yield Delivered(record.timestamp, record.partition_key)


def _evaluations(instance: dg.DagsterInstance, position: Position, checks: Sequence[dg.AssetCheckKey]) -> Iterator[Event]:
    """Each check's newest evaluations, as Dagster cannot list those of all checks in order."""
    for key in checks:
        name = f"{key.name} of {key.asset_key.path[-1]}"
        since = position.checks.get(name, position.since)
        history = instance.event_log_storage.get_asset_check_execution_history(key, limit=MAX_EVALUATIONS, status=EVALUATED)
        for record in reversed(history):
            if record.event is None or record.event.timestamp <= since or record.event.dagster_event is None:
                continue
            evaluation = record.event.dagster_event.asset_check_evaluation_data
            position.checks[name] = max(record.event.timestamp, position.checks.get(name, 0))
            page = f"/assets/{'/'.join(key.asset_key.path)}?view=checks"
            yield CheckEvaluated(
                record.event.timestamp, name, evaluation.partition, evaluation.passed, mask(evaluation.description or ""), page
            )


def _overdue_days(instance: dg.DagsterInstance, settings: AlertSettings, position: Position) -> Iterator[Event]:
    """The days that should be delivered by now and are not, each once."""
    moment, by = now(), f"{settings.delivered_by:%H:%M} {settings.time_zone}"
    if (due := day_due(moment, settings)) is None:
        return
    last = date.fromisoformat(due)
    first = max(position.day + timedelta(days=1), last - timedelta(days=MAX_DAYS - 1), SETTINGS.start_date)
    position.day = max(position.day, last)
    for day in _days(first, last):
        if is_delivered(instance, day):
            continue
        reason, page = _why_not(instance, day)
        yield DayOverdue(moment.timestamp(), day, by, reason, page)


def _why_not(instance: dg.DagsterInstance, day: str) -> tuple[str, str]:
    """What happened to the day's last run after its end, and the page to look at."""
    since = window(day)[1]
    for job in (customerio_sync.name, ASSET_JOB):
        for run in instance.get_runs(dg.RunsFilter(job_name=job, created_after=since), limit=MAX_RUNS):
            if day in days_of(run) and _is_ours(run):
                return f"its last run {ENDS.get(run.status, 'is at work')}.", f"/runs/{run.run_id}"
    page = f"/assets/{'/'.join(customerio_delivery.key.path)}?view=partitions&partition={day}"
    return f"no run of it was started since: is the schedule {customerio_daily.name} on, and can it start runs?", page


def runs_ended(
    instance: dg.DagsterInstance, end: RunEnd, since: int, limit: int = MAX_RUNS
) -> list[tuple[dg.EventLogRecord, dg.DagsterRun | None]]:
    """The runs that have ended like this since, in order; None for one that is not ours, or deleted."""
    wanted = dg.RunStatusChangeRecordsFilter(end, after_storage_id=since)
    records = instance.fetch_run_status_changes(wanted, limit=limit, ascending=True).records
    runs = [(record, instance.get_run_by_id(record.run_id)) for record in records]
    return [(record, run if run is not None and _is_ours(run) else None) for record, run in runs]


def newest(instance: dg.DagsterInstance, end: RunEnd) -> int:
    """The storage id of the last run that has ended like this; 0 if there is none."""
    records = instance.fetch_run_status_changes(end, limit=1).records
    return records[0].storage_id if records else 0


def is_delivered_by_schedule(run: dg.DagsterRun | None) -> bool:
    """Whether a run that has succeeded was started by the nightly schedule."""
    return run is not None and run.tags.get(SCHEDULE) == customerio_daily.name


def checks_of(context: dg.SensorEvaluationContext) -> list[dg.AssetCheckKey]:
    """The checks of our assets, except the one that says the same as `DayOverdue`."""
    repository = context.repository_def
    keys = repository.asset_graph.asset_check_keys if repository else ()
    return sorted(key for key in keys if _is_our_asset(key.asset_key) and key.name != "yesterday_delivered")


def _is_ours(run: dg.DagsterRun) -> bool:
    """Whether a run is of one of our jobs, or materializes our assets."""
    return run.job_name in JOBS or any(map(_is_our_asset, run.asset_selection or ()))


def _is_our_asset(key: dg.AssetKey) -> bool:
    return key.path[0] == PREFIX


def _started(instance: dg.DagsterInstance, run: dg.DagsterRun) -> float:
    record = instance.get_run_record_by_id(run.run_id)
    return record.create_timestamp.timestamp() if record else 0.0


def _is_delivered_since(instance: dg.DagsterInstance, day: str, since: float) -> bool:
    wanted = dg.AssetRecordsFilter(customerio_delivery.key, asset_partitions=[day], after_timestamp=since)
    return bool(instance.fetch_materializations(wanted, limit=1).records)


def days_of(run: dg.DagsterRun) -> tuple[str, ...]:
    """The days that a run's tags name; none if it has no partition."""
    first, last = days_in_tags(run.tags)
    try:
        return tuple(_days(date.fromisoformat(first), date.fromisoformat(last)))
    except ValueError:
        return ()


def _days(first: date, last: date) -> Iterator[str]:
    yield from (str(first + timedelta(days=number)) for number in range((last - first).days + 1))
