"""Writes what the pipeline logs as lines of JSON to stderr (CIO_JSON_LOGS), for a log collector."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

from dagster._core.log_manager import DagsterLogHandler

from cio_pipeline.defs.partitions import days_in_tags

LOGGER = logging.getLogger("cio_pipeline")
DAY = re.compile(r"\d{4}-\d\d-\d\d(?=: )")
"""The beginning of a message about a single day."""


class JsonLine(logging.Formatter):
    """Formats a record as one line: time, level, logger and message; run_id, while Dagster adds what is logged to a run's log;
    and day, if the message or the run is about a single day."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line in ASCII, so that it contains nothing that a terminal obeys, and no encoding fails."""
        message = record.getMessage()
        run_id, first, last = _run()
        named = DAY.match(message)
        day = named[0] if named else first if first == last else ""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": message.strip(),
            **({"day": day} if day else {}),
            **({"run_id": run_id} if run_id else {}),
        }
        return json.dumps(line)


def begin() -> None:
    """Makes this process write the lines from now on."""
    if not any(isinstance(handler.formatter, JsonLine) for handler in LOGGER.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLine())
        LOGGER.addHandler(handler)


def _run() -> tuple[str, str, str]:
    """Returns the id of the run in this process, and its first and last day; empty if there is none.

    During a run, Dagster has a handler on each logger that it manages, also for threads that the run starts. A run that was
    started within another one adds its own handler after the other's.
    """
    handlers = [handler for handler in LOGGER.handlers if isinstance(handler, DagsterLogHandler)]
    if not handlers:
        return "", "", ""
    of = handlers[-1].metadata
    return of["run_id"] or "", *days_in_tags(of["job_tags"])
