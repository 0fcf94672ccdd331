"""What the pipeline logs as lines of JSON on stderr (CIO_JSON_LOGS), for what collects a machine's logs."""

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
"""What a message of one day begins with."""


class JsonLine(logging.Formatter):
    """A record as one line: time, level, logger and message; run_id, where Dagster takes what is logged into a run's log; and
    day, where the message or the run is of one day."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. ASCII, so that no terminal obeys it and no encoding fails."""
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
    """From here on this process writes the lines."""
    if not any(isinstance(handler.formatter, JsonLine) for handler in LOGGER.handlers):
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(JsonLine())
        LOGGER.addHandler(handler)


def _run() -> tuple[str, str, str]:
    """The run that this process works on, its first and its last day; empty where there is none.

    Dagster has a handler on each logger that it manages while a run is at work, also for threads that the run has started. A
    run that was started within another has put its own behind the other's.
    """
    found = [handler for handler in LOGGER.handlers if isinstance(handler, DagsterLogHandler)]
    if not found:
        return "", "", ""
    of = found[-1].metadata
    return of["run_id"] or "", *days_in_tags(of["job_tags"])
