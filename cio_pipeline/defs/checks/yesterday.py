"""The day that must be delivered by now: for the check `yesterday_delivered` and the alert on a late day."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

from cio_pipeline.defs.partitions import DAYS_SETTINGS
from cio_pipeline.settings.settings import DaysSettings

DUE = f"{DAYS_SETTINGS.delivered_by:%H:%M} {DAYS_SETTINGS.time_zone}"
"""CIO_DELIVERED_BY: a day must be delivered by the first such time after its nightly run."""


def day_due(now: datetime, settings: DaysSettings = DAYS_SETTINGS) -> str | None:
    """Returns the newest partition that must be delivered by now, or None if there is none.

    A day is due from the first CIO_DELIVERED_BY after its nightly run (CIO_NIGHTLY_AT) on. With the defaults, the newest is 2
    March at 10:00 on 3 March; at 08:00 it is still 1 March. If CIO_DELIVERED_BY is earlier in the day than CIO_NIGHTLY_AT, a
    day is due one day later.
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
