"""What the checks of all assets share: a check tells, and does not end a run that may go on without it."""

from collections.abc import Callable, Sequence

import dagster as dg

from cio_pipeline.state.database import DatabaseError
from cio_pipeline.tables.files import StorageError

NAMED = 20


def or_warning(check: Callable[[], dg.AssetCheckResult]) -> dg.AssetCheckResult:
    """The check's result; a failed one that says why where the database or the tables cannot be asked."""
    try:
        return check()
    except (DatabaseError, StorageError) as trouble:
        return dg.AssetCheckResult(
            passed=False, severity=dg.AssetCheckSeverity.WARN, description=f"This could not be checked. {trouble}"
        )


def named(days: Sequence[str]) -> str:
    """The days by name, or the first of them."""
    more = f" and {len(days) - NAMED:,} more, to {days[-1]}" if len(days) > NAMED else ""
    return ", ".join(days[:NAMED]) + more
