"""The sentence at the end of a failed command."""

from __future__ import annotations

import errno
import os
import sqlite3
import traceback
from pathlib import Path

from cio_pipeline.cli.terminal import one_line
from cio_pipeline.errors import PipelineError, causes
from cio_pipeline.state.sqlite import with_hint

UNWRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EMFILE,
    errno.EIO,
    errno.ENAMETOOLONG,
)
"""The system's errors for a disk that is full, read-only, inaccessible or broken, and for a name that is too long."""


def sentence_and_status(failure: BaseException) -> tuple[str, int]:
    """Returns what to print about a failure, and the exit status.

    If one of our own errors is among the causes, that is its message. Of any other error only the class is printed, because
    its message may quote data.
    """
    chain = causes(failure)
    for cause in chain:
        if isinstance(cause, PipelineError):
            return str(cause), cause.exit_status
    for cause in chain:
        if isinstance(cause, OSError) and cause.errno in UNWRITABLE:
            where = f" ({cause.filename})" if isinstance(cause.filename, str) else ""
            full = f"{os.strerror(cause.errno)}{where}: nothing can be written to CIO_DATA_DIR, DAGSTER_HOME or the temporary"
            return f"{full} folder. A rerun sends the rest.", 1
        if isinstance(cause, sqlite3.DatabaseError):
            return f"Dagster's own database in DAGSTER_HOME cannot be used: {with_hint(one_line(cause))}", 1
    unexpected = next((cause for cause in chain if not type(cause).__module__.startswith("dagster")), failure)
    frames = traceback.extract_tb(unexpected.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    return f"The run failed: {type(unexpected).__name__} at {place}. Dagster's log of the run has the details.", 1
