"""Runs the pipeline (`python -m cio_pipeline run`), and measures what each of its stages uses."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path

import dagster as dg

from bench.measure import MeasuredProcess, Usage, run_measured
from cio_pipeline.sandbox.processes import bare_environment

STAGES = {
    "posthog_events": "extract",
    "identities": "learn",
    "customers_events_rejects": "derive",
    "customerio_delivery": "deliver",
}
"""The stages of the table by the asset, without its prefix. The rest is `start`: imports, Dagster, checks."""

REQUESTS_PER_SECOND = 1_000
"""The most that the settings allow; Customer.io itself allows 100."""


def run_days(first: date, last: date, export: Path, data: Path, customerio: str) -> MeasuredProcess:
    """Delivers the days from a batch export to Customer.io's stand-in. Raises `RuntimeError` if the run fails.

    export: its folder; data: the pipeline's folder; customerio: the URL of the stand-in.
    """
    data.mkdir(exist_ok=True)
    environment = bare_environment(data) | {
        "CIO_SANDBOX": "Yes",
        "POSTHOG_HOST": "http://127.0.0.1",  # receives no requests
        "CIO_EVENT_SOURCE": "batch_export",
        "CIO_BATCH_EXPORT_URL": str(export),
        "CIO_LATE_DAYS": "0",
        "CIO_START_DATE": str(first),
        "CIO_DATA_DIR": str(data),
        "CIO_MAX_NEW_CUSTOMERS": "1000000000",
        "CIO_REQUESTS_PER_SECOND": str(REQUESTS_PER_SECOND),
        "CUSTOMERIO_TRACKING_ENDPOINT": customerio,
        "CUSTOMERIO_SITE_ID": "bench",
        "CUSTOMERIO_API_KEY": "bench-key",
        **{name: os.environ[name] for name in ("CIO_WORKERS",) if name in os.environ},
    }
    command = [sys.executable, "-m", "cio_pipeline", "run", "--from", str(first), "--to", str(last)]
    run = run_measured(command, environment, data)
    if run.status:
        raise RuntimeError(f"The run ended with status {run.status}:\n{run.output}")
    return run


def usage_by_stage(run: MeasuredProcess, data: Path) -> dict[str, Usage]:
    """Returns what each stage of a run used, according to the times of its steps that Dagster has stored in `data`."""
    steps = {STAGES[asset]: times for asset, times in _step_times(data / "dagster", run.started).items() if asset in STAGES}
    stages = {stage: run.usage_between(*steps[stage]) for stage in STAGES.values()}
    whole = run.usage()
    first = min(start for start, _ in steps.values())
    rest = Usage(
        whole.seconds - sum(stage.seconds for stage in stages.values()),
        whole.cpu - sum(stage.cpu for stage in stages.values()),
        run.usage_between(run.started, first).memory,
    )
    return {"start": rest, **stages}


def _step_times(home: Path, since: float) -> dict[str, tuple[float, float]]:
    """The start and the end of each asset's step in the runs since then. All times are in seconds since 1970."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    of_type = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS}
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        for record in instance.get_run_records():
            for entry in instance.all_logs(record.dagster_run.run_id, of_type=of_type):
                if entry.timestamp >= since and entry.dagster_event is not None:
                    asset = str(entry.dagster_event.step_key).partition(".")[0].removeprefix("cio__")
                    times[asset].append(entry.timestamp)
    return {asset: (min(both), max(both)) for asset, both in times.items()}
