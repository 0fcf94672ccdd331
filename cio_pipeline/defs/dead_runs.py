"""Runs whose process is gone because it was killed or its machine went down, which Dagster's own launcher does not notice.

Dagster considers such a run in progress until `max_runtime_seconds`, a day, is over, and the other runs of a backfill wait for
it. So each run locks a file, the lock ends with the process however that ends, and a sensor looks for files that nobody locks.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dagster as dg
from upath import UPath

from cio_pipeline.errors import PipelineError
from cio_pipeline.settings.load import load_settings
from cio_pipeline.settings.places import is_url
from cio_pipeline.tables.files import writing

GONE = (
    "The process of this run is gone: it was killed, perhaps for lack of memory, or its machine was restarted. What was"
    " delivered is kept; a rerun sends the rest."
)
"""The reason for a failure if the process of the run is gone."""

FOLDER = "running"
"""The folder in CIO_DATA_DIR. A bucket has none, so dead runs are not detected there."""

NEW = ".new"
"""The suffix of a file that is not locked yet."""

DESCRIPTION = (
    "Ends each run of this code location whose process is gone, so that the runs that wait for it can start; Dagster itself"
    " would consider it in progress for a day. It looks at the locks of this machine's runs in CIO_DATA_DIR. It starts nothing."
)


class RunLock:
    """The file that a run locks while its process lives. It contains the name of its machine."""

    def __init__(self, data_dir: str, run_id: str) -> None:
        """Raises `StorageError` if the file cannot be written."""
        self._file: Path | None = None
        if is_url(data_dir):
            return
        folder = Path(data_dir) / FOLDER
        with writing(UPath(folder)):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            new = folder / f"{run_id}{NEW}"
            self._opened = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.write(self._opened, socket.gethostname().encode())
            fcntl.flock(self._opened, fcntl.LOCK_EX)
            self._file = new.rename(folder / run_id)  # from now on the sensor sees it

    def release(self) -> None:
        """Removes the file. To be called when the run has ended."""
        if self._file is not None:
            self._file.unlink(missing_ok=True)
            os.close(self._opened)
            self._file = None


@dg.sensor(description=DESCRIPTION, minimum_interval_seconds=60, default_status=dg.DefaultSensorStatus.RUNNING)
def customerio_dead_runs(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Ends the runs whose process is gone."""
    try:
        data_dir = load_settings().data_dir
    except PipelineError as error:
        return dg.SkipReason(str(error))
    if is_url(data_dir):
        return dg.SkipReason("CIO_DATA_DIR is in a bucket, where runs have no locks, so dead runs cannot be detected.")
    ended = [file.name for file in _unlocked(Path(data_dir) / FOLDER) if _end(context.instance, file)]
    return dg.SkipReason(f"Ended, as their processes are gone: {', '.join(ended)}." if ended else "No run's process is gone.")


def _unlocked(folder: Path) -> Iterator[Path]:
    """Yields the files that no process locks. Each is locked while it is looked at."""
    for file in sorted(folder.glob("*-*")) if folder.is_dir() else ():
        if file.suffix == NEW:
            continue
        with suppress(OSError), _locked(file):  # it is locked, or has just gone
            yield file


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    opened = os.open(file, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def _end(instance: dg.DagsterInstance, file: Path) -> bool:
    """Ends the run in Dagster. Returns whether it was in progress. Runs of other machines are left alone, as their locks may
    not be visible here."""
    run = instance.get_run_by_id(file.name)
    in_progress = run is not None and not run.is_finished
    if in_progress and file.read_text() != socket.gethostname():
        return False
    if run is not None and in_progress:
        if run.status == dg.DagsterRunStatus.CANCELING:
            instance.report_run_canceled(run, GONE)
        else:
            instance.report_run_failed(run, GONE)
    file.unlink(missing_ok=True)
    return in_progress
