"""The days the pipeline works in: UTC, one definition and one backfill policy for every asset."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, time

import dagster as dg

from cio_pipeline.errors import PipelineError
from cio_pipeline.settings.load import load_days_settings

SETTINGS = load_days_settings()

days = dg.DailyPartitionsDefinition(start_date=str(SETTINGS.start_date), timezone="UTC")

backfill_policy = dg.BackfillPolicy.multi_run(max_partitions_per_run=SETTINGS.days_per_run)

LATE_DAYS = SETTINGS.late_days

PARTITION = "dagster/partition"
RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
"""The tags by which Dagster runs several partitions in one run."""


DAYS_IN_ALL = "cio_pipeline/days_in_all"
"""The tag that says how many days were asked for, where a run has but some of them."""


class DaysError(PipelineError):
    """The days asked for are not partitions; the message says why."""

    exit_status = 2


def days_between(first: str, last: str) -> list[str]:
    """The partitions from the first to the last. Raises `DaysError` where either is none, or where they go backwards."""
    for key in (first, last):
        if not days.has_partition_key(key):
            earliest, latest = days.get_first_partition_key(), days.get_last_partition_key()
            raise DaysError(
                f"{key} is not a partition: days go from {earliest} (CIO_START_DATE) to {latest} (yesterday, UTC)."
                if earliest
                else "There is no partition yet: CIO_START_DATE lies in the future."
            )
    if first > last:
        raise DaysError(f"FROM ({first}) comes after TO ({last}).")
    return list(days.get_partition_keys_in_range(dg.PartitionKeyRange(first, last)))


AGO = re.compile(r"(?:yesterday|(\d{1,5}) days ago)", re.IGNORECASE)


def days_asked_for(first: str, last: str) -> list[str]:
    """As `days_between`, where either may be `yesterday` or `30 days ago` (UTC), but no earlier than the first partition."""
    known = days.get_partition_keys()

    def day(text: str) -> str:
        found = AGO.fullmatch(text.strip())
        return known[max(-int(found[1] or 1), -len(known))] if found and known and found[1] != "0" else text.strip()

    return days_between(day(first), day(last))


def days_in_tags(tags: Mapping[str, str]) -> tuple[str, str]:
    """The first and the last day that a run's tags name; empty where they name none."""
    one = tags.get(PARTITION, "")
    return tags.get(RANGE_START) or one, tags.get(RANGE_END) or one


def refuse_wrong_days(tags: Mapping[str, str]) -> None:
    """Raises `DaysError` where a run's tags name a day that is not over, or no days: Dagster takes any text in them."""
    first, last = days_in_tags(tags)
    if first or last:
        days_between(first or last, last or first)


def days_tag(tags: Mapping[str, str]) -> dict[str, str]:
    """The tag by which the list of runs shows the days of a run with these tags: Dagster hides its own for a range of days."""
    first, last = tags.get(RANGE_START), tags.get(RANGE_END)
    return {"days": first if first == last else f"{first} to {last}"} if first and last else {}


def daily_at(hour: time) -> str:
    """The cron schedule of each day at that hour."""
    return f"{hour.minute} {hour.hour} * * *"


def window(day: str) -> tuple[datetime, datetime]:
    """The day's start, and its end, which is the next day's start."""
    found = days.time_window_for_partition_key(day)
    return found.start.astimezone(UTC), found.end.astimezone(UTC)


def days_before(day: str) -> list[str]:
    """All partitions before this one."""
    keys = days.get_partition_keys()
    return [key for key in keys if key < day]
