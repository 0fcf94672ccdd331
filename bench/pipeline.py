"""The pipeline under the clock: `python -m cio_pipeline run`, and what each of its stages used."""

from __future__ import annotations

import os
import sys
from collections import defaultdict
from datetime import date
from pathlib import Path

import dagster as dg

from bench.measure import Measured, Used, run_measured
from cio_pipeline.sandbox.processes import bare_environment

STAGES = {
    "posthog_events": "extract",
    "identities": "learn",
    "customers_events_rejects": "derive",
    "customerio_delivery": "deliver",
}
"""The stages of the table, by the asset (without its prefix) of the step. All else is `start`: imports, Dagster, checks."""

REQUESTS_PER_SECOND = 1_000
"""The most that the settings allow; Customer.io itself allows 100."""


def run_days(first: date, last: date, export: Path, data: Path, customerio: str) -> Measured:
    """Runs the days from a batch export's folder to a Customer.io. Raises `RuntimeError` if they were not delivered."""
    data.mkdir(exist_ok=True)
    environment = bare_environment(data) | {
        "CIO_SANDBOX": "Yes",
        "POSTHOG_HOST": "http://127.0.0.1",  # is not asked
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
    measured = run_measured(command, environment, data)
    if measured.status:
        raise RuntimeError(f"The run ended with status {measured.status}:\n{measured.output}")
    return measured


def stages_of(measured: Measured, data: Path) -> dict[str, Used]:
    """What each stage of a run used, by Dagster's own times of its steps."""
    steps = {STAGES[asset]: times for asset, times in _steps(data / "dagster", measured.began).items() if asset in STAGES}
    found = {stage: measured.between(*steps[stage]) for stage in STAGES.values()}
    whole = measured.whole()
    first = min(begin for begin, _ in steps.values())
    rest = Used(
        whole.seconds - sum(used.seconds for used in found.values()),
        whole.cpu - sum(used.cpu for used in found.values()),
        measured.between(measured.began, first).memory,
    )
    return {"start": rest, **found}


def _steps(home: Path, began: float) -> dict[str, tuple[float, float]]:
    """When each asset's step of the runs since then started and ended, in seconds since 1970."""
    times: defaultdict[str, list[float]] = defaultdict(list)
    of_type = {dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS}
    with dg.DagsterInstance.local_temp(str(home)) as instance:
        for record in instance.get_run_records():
            for entry in instance.all_logs(record.dagster_run.run_id, of_type=of_type):
                if entry.timestamp >= began and entry.dagster_event is not None:
                    times[str(entry.dagster_event.step_key).partition(".")[0].removeprefix("cio__")].append(entry.timestamp)
    return {asset: (min(found), max(found)) for asset, found in times.items()}
