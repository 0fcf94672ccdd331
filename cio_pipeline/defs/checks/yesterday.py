"""The day that must be delivered by now, and whether it is: for the check `yesterday_delivered` and the alert on a late day."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import dagster as dg

from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.pages.receipts import LEFT
from cio_pipeline.defs.partitions import DAYS_SETTINGS, day_bounds
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


class Delivery(NamedTuple):
    """A delivery of a day, according to Dagster."""

    day: str
    began: datetime
    """When its run began."""
    left: int = 0
    """The upserts and events of the day that its run has left for another one, because of `limit` or `hold_recent_events`."""

    @property
    def is_whole(self) -> bool:
        """Whether it was complete: the day was over when its run began, which has left nothing for another one."""
        return not self.left and self.began >= day_bounds(self.day)[1]


def is_delivered(instance: dg.DagsterInstance, day: str, since: float | None = None) -> bool:
    """Returns whether the day's last delivery (since a time, in seconds since 1970) was complete."""
    delivery = last_delivery(instance, day, since)
    return delivery is not None and delivery.is_whole


def last_delivery(instance: dg.DagsterInstance, day: str, since: float | None = None) -> Delivery | None:
    """Returns the day's last delivery (since a time, in seconds since 1970), or None if there is none."""
    wanted = dg.AssetRecordsFilter(asset_key=DELIVERY, asset_partitions=[day], after_timestamp=since)
    records = instance.fetch_materializations(wanted, limit=1).records
    return delivery_of(instance, day, records[0]) if records else None


def delivery_of(instance: dg.DagsterInstance, day: str, record: dg.EventLogRecord) -> Delivery:
    """Returns the delivery of the day that a materialization records."""
    run = instance.get_run_record_by_id(record.run_id)
    began = run.start_time if run is not None and run.start_time is not None else record.timestamp
    receipt: Any = record.asset_materialization
    left = receipt.metadata[LEFT].value if LEFT in receipt.metadata else 0
    return Delivery(day, datetime.fromtimestamp(began, UTC), left)


def anything_delivered(instance: dg.DagsterInstance) -> bool:
    """Returns whether any day was ever delivered; before that, nothing is due."""
    return instance.get_latest_materialization_event(DELIVERY) is not None
