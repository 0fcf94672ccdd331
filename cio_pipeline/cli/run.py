"""Runs the job without the UI, for `make run`: progress line by line, and what went wrong last."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import sqlite3
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from cio_pipeline.cli.summary import Summary
from cio_pipeline.cli.terminal import complain, one_line, say
from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.definitions import defs
from cio_pipeline.defs.partitions import DAYS_IN_ALL, RANGE_END, RANGE_START, DaysError, days_between
from cio_pipeline.http_retry import Unavailable
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.settings.places import dagster_home, shown
from cio_pipeline.settings.settings import Settings, SettingsError
from cio_pipeline.settings.values import clean
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.tables.files import StorageError
from cio_pipeline.tables.tables import keep_private
from cio_pipeline.worker_pool import WorkerDied

SPEAKING = (SettingsError, DaysError, NotExtracted, NotDelivered, StorageError, WorkerDied, Unavailable, DatabaseError)
"""Our own errors: their message is a sentence for the user."""

NO_PLACE = (
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
"""What the system says of a disk that is full, read-only, closed to us or broken, and of a name that is too long."""

INTERRUPTED = 130


class Lines(logging.Handler):
    """Prints what the assets say of their progress, and tells the summary of Dagster's own events."""

    def __init__(self, summary: Summary) -> None:
        super().__init__()
        self._summary = summary

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the message alone, as one line."""
        said = getattr(record, "dagster_meta", {})
        if (event := said.get("dagster_event")) is not None:
            self._summary.see(event)
        elif record.levelno == logging.INFO and "orig_message" in said:
            say(said["orig_message"])


def _logger(summary: Summary) -> dg.LoggerDefinition:
    """The logger of a headless run, in place of Dagster's console."""

    @dg.logger
    def lines(_: dg.InitLoggerContext) -> logging.Logger:
        logger = logging.Logger("lines", logging.DEBUG)
        logger.addHandler(Lines(summary))
        return logger

    return lines


def run_days(first: str, last: str, settings: Settings, chosen: dict[str, Any]) -> int:
    """Runs `customerio_sync` for the days, a few a run; gives the exit status.

    That is 0 where everything was delivered and no more refused than CIO_REFUSED_SHARE allows, 130 after Ctrl-C, else 1.
    `chosen` is the sink's run config (`defs.deliver.Delivery`). Raises `DaysError`, before anything else, where the days are
    no partitions.
    """
    keys = days_between(first, last)
    keep_private()
    summary = Summary(settings)
    try:
        with _instance(settings) as instance:
            for start in range(0, len(keys), settings.days_per_run):
                chunk = keys[start : start + settings.days_per_run]
                _run(chunk, {DAYS_IN_ALL: str(len(keys))}, instance, chosen, summary)
            return summary.end()
    except Exception as failure:
        for line in summary.failed_checks():
            say(line)
        complain(_sentence(failure))
        return 1
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        complain("Interrupted: what Customer.io has acknowledged is kept, and a rerun sends the rest.")
        return INTERRUPTED


@contextmanager
def _instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """DAGSTER_HOME's instance, so that the UI shows the runs; without one, an instance in the data dir.

    It is made under a lock: two processes that make Dagster's databases at once leave them broken.
    """
    given = bool(clean(os.environ.get("DAGSTER_HOME", "")))
    home = dagster_home(settings.data_dir)
    say(_places(settings, home))
    with (home / ".cio_pipeline.state.delivery_lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        instance = (
            dg.DagsterInstance.get()
            if given
            else dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}})
        )
    with instance:
        yield instance


def _places(settings: Settings, home: Path) -> str:
    source = settings.batch_export_url if settings.event_source == "batch_export" else settings.posthog_url
    return (
        f"Reads {shown(source)}, sends to {shown(settings.tracking_url)}; the tables are in {shown(settings.data_dir)},"
        f" the ledger is {shown(settings.ledger_url)}, Dagster's runs are in {home}."
    )


def _run(
    chunk: list[str], tags: dict[str, str], instance: dg.DagsterInstance, chosen: dict[str, Any], summary: Summary
) -> None:
    """Runs the days, and says what was delivered. Raises what the run failed of."""
    given = {name: value for name, value in chosen.items() if value is not None}
    spoken = dg.Definitions.merge(defs, dg.Definitions(loggers={"lines": _logger(summary)}))
    spoken.resolve_job_def("customerio_sync").execute_in_process(
        instance=instance,
        tags={RANGE_START: chunk[0], RANGE_END: chunk[-1], **tags},
        run_config={
            "loggers": {"lines": {}},
            "ops": {"customerio_delivery": {"ops": {"upsert_to_customerio": {"config": given}}}},
        },
    )


def _sentence(failure: BaseException) -> str:
    """Our own error among the causes, in its own words; of any other no more than its kind, for it may quote data."""
    causes = [failure]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, SPEAKING):
            return str(cause)
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in NO_PLACE:
            where = f" ({cause.filename})" if isinstance(cause.filename, str) else ""
            return (
                f"{os.strerror(cause.errno)}{where}: nothing can be kept in CIO_DATA_DIR, DAGSTER_HOME or the temporary folder."
                " A rerun sends the rest."
            )
        if isinstance(cause, sqlite3.DatabaseError):
            return f"Dagster's own database in DAGSTER_HOME cannot be used: {one_line(cause)}."
    unexpected = next((cause for cause in causes if not type(cause).__module__.startswith("dagster")), failure)
    frames = traceback.extract_tb(unexpected.__traceback__)
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "an unknown place"
    return f"The run failed: {type(unexpected).__name__} at {place}. Dagster's log of the run has the details."
