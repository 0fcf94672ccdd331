"""The day that must be delivered by now, and whether it is: for the check `yesterday_delivered` and the alert on a late day."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import dagster as dg

from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.partitions import DAYS_SETTINGS, window
from cio_pipeline.settings.settings import DaysSettings

DUE = f"{DAYS_SETTINGS.delivered_by:%H:%M} {DAYS_SETTINGS.time_zone}"
"""CIO_DELIVERED_BY: from this time on, the day of the last nightly run must be delivered."""


def day_due(now: datetime, settings: DaysSettings = DAYS_SETTINGS) -> str | None:
    """Returns the last partition that must be delivered by now, or None if there is none.

    That is the day before the last nightly run (CIO_NIGHTLY_AT) that was before the last CIO_DELIVERED_BY.

    So if CIO_DELIVERED_BY is earlier in the day than CIO_NIGHTLY_AT, the day of a nightly run is due on the next day.
    """
    zone = ZoneInfo(settings.time_zone)
    due = _last(settings.delivered_by, zone, now)
    nightly = _last(settings.nightly_at, zone, due - timedelta(microseconds=1))
    day = nightly.date() - timedelta(days=1)
    return str(day) if day >= settings.start_date else None


def _last(time_of_day: time, zone: ZoneInfo, moment: datetime) -> datetime:
    """Returns the last time, up to `moment`, that a clock in the time zone showed `time_of_day` (UTC)."""
    today = moment.astimezone(zone).date()
    times = (datetime.combine(today - timedelta(days=back), time_of_day, zone).astimezone(UTC) for back in (0, 1))
    return next(shown for shown in times if shown <= moment)


def is_delivered(instance: dg.DagsterInstance, day: str) -> bool:
    """Returns whether the day's last delivery was complete."""
    return is_whole(day, delivered_at(instance, day))


def is_whole(day: str, began: datetime | None) -> bool:
    """Returns whether a delivery of the day by a run that began then was complete: the day was over."""
    return began is not None and began >= window(day)[1]


def delivered_at(instance: dg.DagsterInstance, day: str) -> datetime | None:
    """Returns when the run began that last delivered the day, according to Dagster, or None if none has."""
    wanted = dg.AssetRecordsFilter(asset_key=DELIVERY, asset_partitions=[day])
    records = instance.fetch_materializations(wanted, limit=1).records
    return began_at(instance, records[0]) if records else None


def began_at(instance: dg.DagsterInstance, delivery: dg.EventLogRecord) -> datetime:
    """Returns when the run of this materialization began."""
    run = instance.get_run_record_by_id(delivery.run_id)
    began = run.start_time if run is not None and run.start_time is not None else delivery.timestamp
    return datetime.fromtimestamp(began, UTC)


def anything_delivered(instance: dg.DagsterInstance) -> bool:
    """Returns whether any day was ever delivered; before that, nothing is due."""
    return instance.get_latest_materialization_event(DELIVERY) is not None
