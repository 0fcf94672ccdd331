"""Whether the day that has to be delivered by now is delivered."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import dagster as dg

from cio_pipeline.defs.keys import key
from cio_pipeline.defs.partitions import SETTINGS, days, window

DELIVERY = key("customerio_delivery")

DUE = SETTINGS.delivered_by
"""CIO_DELIVERED_BY: from then on, UTC, yesterday has to be delivered."""


def day_due(now: datetime, due: time = DUE) -> str | None:
    """The last partition that has to be delivered by now: from the time `due` on, UTC, yesterday, till then the day before it.

    None where that lies before the first partition.
    """
    utc = now.astimezone(UTC)
    day = str(utc.date() - timedelta(days=1 if utc.time() >= due else 2))
    return day if day >= str(days.start.date()) else None


def is_whole(day: str, began: datetime | None) -> bool:
    """Whether a delivery of the day that began then had all of it: an hourly run of a day that is not over has not."""
    return began is not None and began >= window(day)[1]


def delivered_at(instance: dg.DagsterInstance, day: str) -> datetime | None:
    """When the run began that delivered the day last, as Dagster's instance has it; None where none has."""
    wanted = dg.AssetRecordsFilter(asset_key=DELIVERY, asset_partitions=[day])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        run = instance.get_run_record_by_id(record.run_id)
        began = run.start_time if run is not None and run.start_time is not None else record.timestamp
        return datetime.fromtimestamp(began, UTC)
    return None


def anything_delivered(instance: dg.DagsterInstance) -> bool:
    """Whether any day ever was: before that nothing is due."""
    return instance.get_latest_materialization_event(DELIVERY) is not None
