"""What all checks share."""

from collections.abc import Callable, Sequence

import dagster as dg

from cio_pipeline.defs.partitions import days, days_in_tags
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.tables.files import StorageError

NAMED = 20
RECENT_DAYS = 7

WHICH_DAYS = f"Looks at the days of the run; run alone, at the last {RECENT_DAYS}."


def or_warning(check: Callable[[], dg.AssetCheckResult]) -> dg.AssetCheckResult:
    """The check's result; a warning where the database or the tables cannot be read, so that a check does not end a run."""
    try:
        return check()
    except (DatabaseError, StorageError) as error:
        return dg.AssetCheckResult(
            passed=False, severity=dg.AssetCheckSeverity.WARN, description=f"This could not be checked. {error}"
        )


def days_of(run: dg.DagsterRun) -> list[str]:
    """The partitions of the run; the last `RECENT_DAYS` where it has none because it only evaluates checks."""
    first, last = days_in_tags(run.tags)
    known = list(days.get_partition_keys())
    return [day for day in known if first <= day <= last] if first and last else known[-RECENT_DAYS:]


def listed(days: Sequence[str]) -> str:
    """The days, or the first `NAMED` of them, as text."""
    more = f" and {len(days) - NAMED:,} more, to {days[-1]}" if len(days) > NAMED else ""
    return ", ".join(days[:NAMED]) + more


def how_to_run(days: Sequence[str]) -> str:
    """How to run these days, from the first to the last."""
    if len(days) == 1:
        return f"run the job customerio_sync for it (`make run PARTITION={days[0]}`)"
    return f"run the job customerio_backfill for them (`make run FROM={days[0]} TO={days[-1]}`)"
