"""Dagster's instance, for the commands that run something or look at runs."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager

import dagster as dg

from cio_pipeline.settings.places import dagster_home
from cio_pipeline.settings.settings import Settings
from cio_pipeline.settings.values import clean
from cio_pipeline.tables.files import keep_private

NO_COMPUTE_LOGS = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}
"""The part of dagster.yaml by which what a run prints is not copied to files: a command prints it here, and the processes that
copy it would answer Ctrl-C with tracebacks."""

INSTANCE = {"telemetry": {"enabled": False}, "python_logs": {"managed_python_loggers": ["cio_pipeline"]}}
"""The part of dagster.yaml that the runs need, as there is no such file without a DAGSTER_HOME."""


@contextmanager
def dagster_instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The instance in DAGSTER_HOME, so that the UI shows the runs; without one, an instance in CIO_DATA_DIR.

    It is created under a lock, because two processes that create Dagster's databases at once leave them broken.
    """
    given = bool(clean(os.environ.get("DAGSTER_HOME", "")))
    keep_private()
    home = dagster_home(settings.data_dir)
    with (home / ".cio_pipeline.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        instance = dg.DagsterInstance.local_temp(str(home), NO_COMPUTE_LOGS if given else INSTANCE | NO_COMPUTE_LOGS)
    with instance:
        yield instance
