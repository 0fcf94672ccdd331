"""Lines of JSON, one for each message: with its run and its day, from threads, too, and in a run within a run."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import dagster as dg
import pytest

from cio_pipeline.defs import json_logs
from cio_pipeline.defs.partitions import PARTITION, RANGE_END, RANGE_START

logger = logging.getLogger("cio_pipeline.a_test")
Lines = Callable[[], list[dict[str, Any]]]
MANAGED = {"python_logs": {"managed_python_loggers": ["cio_pipeline"]}}


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """A Dagster that takes what the pipeline logs, as dagster.yaml says."""
    with dg.DagsterInstance.ephemeral(settings=MANAGED) as found:
        yield found


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lines]:
    """Gives the lines that were written to stderr."""
    before, written = list(json_logs.LOGGER.handlers), io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", written)
        json_logs.begin()
        json_logs.begin()
    yield lambda: [json.loads(line) for line in written.getvalue().splitlines()]
    json_logs.LOGGER.handlers[:] = before


def run(instance: dg.DagsterInstance, what: Any, **tags: str) -> str:
    """Runs a function as a job with these tags; gives the run's id."""

    @dg.op
    def work() -> None:
        what()

    job = dg.GraphDefinition(name="job", node_defs=[work]).to_job()
    return job.execute_in_process(instance=instance, tags=tags).run_id


def test_a_line_has_the_message_its_run_and_its_day(instance: dg.DagsterInstance, lines: Lines) -> None:
    def log() -> None:
        logger.info("%s events", f"{1000:,}")
        thread = threading.Thread(target=lambda: logger.warning("2026-03-04: said by\na thread"))
        thread.start()
        thread.join()

    run_id = run(instance, log, **{PARTITION: "2026-03-02"})
    found = lines()
    assert [one.pop("time")[-6:] for one in found] == ["+00:00", "+00:00"]
    assert found == [
        {"level": "INFO", "logger": logger.name, "message": "1,000 events", "day": "2026-03-02", "run_id": run_id},
        {
            "level": "WARNING",
            "logger": logger.name,
            "message": "2026-03-04: said by\na thread",
            "day": "2026-03-04",
            "run_id": run_id,
        },
    ]


def test_a_run_within_a_run_has_its_own_lines_and_a_range_is_no_day(instance: dg.DagsterInstance, lines: Lines) -> None:
    within: list[str] = []

    def outer() -> None:
        logger.info("before")
        within.append(run(instance, lambda: logger.info("within"), **{RANGE_START: "2026-03-01", RANGE_END: "2026-03-02"}))
        logger.info("after")

    run_id = run(instance, outer)
    found = lines()
    assert {one["message"]: one["run_id"] for one in found} == {"before": run_id, "within": within[0], "after": run_id}
    assert not any("day" in one for one in found)


def test_outside_of_runs_there_is_no_run(lines: Lines) -> None:
    logger.error("no run")
    [found] = lines()
    assert {**found, "time": ""} == {"time": "", "level": "ERROR", "logger": logger.name, "message": "no run"}


def test_a_line_is_ascii_whatever_is_logged() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 0, "half a pair: \udc00, \x1b[31m", None, None)
    line = json_logs.JsonLine().format(record)
    assert line.isascii()
    assert line.isprintable()
    assert json.loads(line)["message"] == "half a pair: \udc00, \x1b[31m"
