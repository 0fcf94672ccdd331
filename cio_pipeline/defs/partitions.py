"""The partitions: UTC days, with one definition and one backfill policy for all assets."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, time

import dagster as dg

from cio_pipeline.errors import PipelineError
from cio_pipeline.settings.load import load_days_settings

DAYS_SETTINGS = load_days_settings()
"""The settings of partitions, schedules and logs, as of when the definitions were loaded. A run reads all settings again
(`Store.settings`)."""

daily_partitions = dg.DailyPartitionsDefinition(start_date=str(DAYS_SETTINGS.start_date), timezone="UTC")

backfill_policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=DAYS_SETTINGS.days_per_run)

PARTITION = "dagster/partition"
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
"""Dagster's tags for a run of one partition, and of several."""

SCHEDULE_TAG = "dagster/schedule_name"
"""Dagster's tag for a run that a schedule has started."""

DAYS_IN_ALL = "cio_pipeline/days_in_all"
"""The tag with the number of days of the whole backfill that a run is part of."""


class DaysError(PipelineError):
    """The requested days are not partitions; the message says why."""

    exit_status = 2


def now() -> datetime:
    """Returns the present time (UTC). It is imported by name, so that a test can set the time of one module."""
    return datetime.now(UTC)


def days_between(first: str, last: str) -> list[str]:
    """Returns the partitions from the first to the last. Raises `DaysError` if either is not one, or the first is later."""
    for day in (first, last):
        if not daily_partitions.has_partition_key(day):
            earliest, latest = daily_partitions.get_first_partition_key(), daily_partitions.get_last_partition_key()
            raise DaysError(
                f"{day} is not a partition: days go from {earliest} (CIO_START_DATE) to {latest} (yesterday, UTC)."
                if earliest
                else "There is no partition yet: CIO_START_DATE is in the future."
            )
    if first > last:
        raise DaysError(f"FROM ({first}) comes after TO ({last}).")
    return list(daily_partitions.get_partition_keys_in_range(dg.PartitionKeyRange(first, last)))


RELATIVE_DAY = re.compile(r"(?:yesterday|(\d{1,5}) days ago)", re.IGNORECASE)


def days_asked_for(first: str, last: str) -> list[str]:
    """Returns the same as `days_between`, but either may be `yesterday` or `30 days ago` (UTC), which is at least the first
    partition."""
    partitions = daily_partitions.get_partition_keys()

    def day(text: str) -> str:
        relative = RELATIVE_DAY.fullmatch(text.strip())
        if relative is None or not partitions or relative[1] == "0":
            return text.strip()
        return partitions[max(-int(relative[1] or 1), -len(partitions))]

    return days_between(day(first), day(last))


def days_in_tags(tags: Mapping[str, str]) -> tuple[str, str]:
    """Returns the first and the last day that a run's tags name; empty if they name none."""
    partition = tags.get(PARTITION, "")
    return tags.get(RANGE_START) or partition, tags.get(RANGE_END) or partition


def check_days(tags: Mapping[str, str]) -> None:
    """Raises `DaysError` if a run's tags name something that is not a partition: Dagster accepts any text there."""
    first, last = days_in_tags(tags)
    if first or last:
        days_between(first or last, last or first)


def days_tag(tags: Mapping[str, str]) -> dict[str, str]:
    """Returns the tag that shows a run's days in the list of runs, as Dagster hides its own tags for a range of days."""
    first, last = tags.get(RANGE_START), tags.get(RANGE_END)
    return {"days": first_to_last(first, last)} if first and last else {}


def first_to_last(first: str, last: str) -> str:
    """Returns `2026-03-02`, or `2026-03-02 to 2026-03-04`."""
    return first if first == last else f"{first} to {last}"


def days_text(days: list[str]) -> str:
    """Returns `2026-03-02`, or `2026-03-02 to 2026-03-04 (3 days)`."""
    return first_to_last(days[0], days[-1]) + (f" ({len(days):,} days)" if len(days) > 1 else "")


def daily_at(hour: time) -> str:
    """Returns the cron expression for this time every day."""
    return f"{hour.minute} {hour.hour} * * *"


def day_bounds(day: str) -> tuple[datetime, datetime]:
    """Returns the day's start, and its end, which is the next day's start (UTC)."""
    time_window = daily_partitions.time_window_for_partition_key(day)
    return time_window.start.astimezone(UTC), time_window.end.astimezone(UTC)


def days_before(day: str) -> list[str]:
    """Returns all partitions before this one."""
    return [partition for partition in daily_partitions.get_partition_keys() if partition < day]
