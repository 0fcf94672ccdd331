"""What the checks of all assets share: a check tells, and does not end a run that may go on without it."""

from collections.abc import Callable, Sequence

import dagster as dg

from cio_pipeline.defs.partitions import PARTITION, RANGE_END, RANGE_START, days
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.tables.files import StorageError

NAMED = 20
RECENT_DAYS = 7

OF_THE_RUN = f"Looks at the days of the run; run alone, at the last {RECENT_DAYS}."


def or_warning(check: Callable[[], dg.AssetCheckResult]) -> dg.AssetCheckResult:
    """The check's result; a failed one that says why where the database or the tables cannot be asked."""
    try:
        return check()
    except (DatabaseError, StorageError) as trouble:
        return dg.AssetCheckResult(
            passed=False, severity=dg.AssetCheckSeverity.WARN, description=f"This could not be checked. {trouble}"
        )


def days_of(run: dg.DagsterRun) -> list[str]:
    """The partitions of the run; where it has none, for it evaluates checks alone, the last `RECENT_DAYS` that there are."""
    first, last = run.tags.get(RANGE_START) or run.tags.get(PARTITION), run.tags.get(RANGE_END) or run.tags.get(PARTITION)
    known = list(days.get_partition_keys())
    return [day for day in known if first <= day <= last] if first and last else known[-RECENT_DAYS:]


def named(days: Sequence[str]) -> str:
    """The days by name, or the first of them."""
    more = f" and {len(days) - NAMED:,} more, to {days[-1]}" if len(days) > NAMED else ""
    return ", ".join(days[:NAMED]) + more


def to_run(days: Sequence[str]) -> str:
    """How to run these days, from the first to the last."""
    if len(days) == 1:
        return f"run the job customerio_sync for it (`make run PARTITION={days[0]}`)"
    return f"run the job customerio_sync for them (`make run FROM={days[0]} TO={days[-1]}`)"


def percent(share: float) -> str:
    """0.0125 -> `1.25 %`."""
    return f"{round(share * 100, 2):g} %"
