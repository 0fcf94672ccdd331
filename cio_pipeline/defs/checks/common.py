"""Helpers of the asset checks."""

from collections.abc import Callable, Sequence

import dagster as dg

from cio_pipeline.defs.partitions import daily_partitions, days_in_tags
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.tables.files import StorageError

MAX_LISTED = 20
RECENT_DAYS = 7

WHICH_DAYS = f"Looks at the days of the run or, run on its own, at the last {RECENT_DAYS}."


def or_warning(check: Callable[[], dg.AssetCheckResult]) -> dg.AssetCheckResult:
    """Returns the check's result, or a warning if the database or the tables cannot be read, so that no check ends a run."""
    try:
        return check()
    except (DatabaseError, StorageError) as error:
        return dg.AssetCheckResult(
            passed=False, severity=dg.AssetCheckSeverity.WARN, description=f"This could not be checked. {error}"
        )


def days_of_run_or_recent(run: dg.DagsterRun) -> list[str]:
    """Returns the partitions of the run, or the last `RECENT_DAYS` if it has none because it only evaluates checks."""
    first, last = days_in_tags(run.tags)
    partitions = list(daily_partitions.get_partition_keys())
    return [day for day in partitions if first <= day <= last] if first and last else partitions[-RECENT_DAYS:]


def listed(days: Sequence[str]) -> str:
    """Returns the days, or the first `MAX_LISTED` of them, as text."""
    more = f" and {len(days) - MAX_LISTED:,} more, to {days[-1]}" if len(days) > MAX_LISTED else ""
    return ", ".join(days[:MAX_LISTED]) + more


def how_to_run(days: Sequence[str]) -> str:
    """Returns how to run these days, from the first to the last, as part of a sentence."""
    if len(days) == 1:
        return f"run the job customerio_sync for it (`make run PARTITION={days[0]}`)"
    return f"run the job customerio_backfill for them (`make run FROM={days[0]} TO={days[-1]}`)"
