"""Which days are delivered, and whether completely, according to Dagster."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, NamedTuple

import dagster as dg

from cio_pipeline.customerio.counts import LEFT_FOR_ANOTHER_RUN
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.partitions import day_bounds


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
    left = receipt.metadata[LEFT_FOR_ANOTHER_RUN].value if LEFT_FOR_ANOTHER_RUN in receipt.metadata else 0
    return Delivery(day, datetime.fromtimestamp(began, UTC), left)


def anything_delivered(instance: dg.DagsterInstance) -> bool:
    """Returns whether any day was ever delivered; before that, nothing is due."""
    return instance.get_latest_materialization_event(DELIVERY) is not None
