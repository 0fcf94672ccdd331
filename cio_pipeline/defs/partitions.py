"""The days the pipeline works in: UTC, one definition and one backfill policy for every asset."""

from datetime import datetime, timezone

import dagster as dg

from cio_pipeline.settings import load_days_settings

SETTINGS = load_days_settings()

days = dg.DailyPartitionsDefinition(start_date=str(SETTINGS.start_date), timezone="UTC")

a_few_days_a_run = dg.BackfillPolicy.multi_run(max_partitions_per_run=SETTINGS.days_per_run)

LATE_DAYS = SETTINGS.late_days

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
"""The tags by which Dagster runs several partitions in one run."""


def window(day: str) -> tuple[datetime, datetime]:
    """The day's start, and its end, which is the next day's start."""
    found = days.time_window_for_partition_key(day)
    return found.start.astimezone(timezone.utc), found.end.astimezone(timezone.utc)


def days_before(day: str) -> list[str]:
    """All partitions before this one."""
    keys = days.get_partition_keys()
    return [key for key in keys if key < day]
