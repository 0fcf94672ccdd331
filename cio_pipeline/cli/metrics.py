"""Prints metrics of the ledger and of Dagster's runs in Prometheus' text format: no personal data, and few series."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

import dagster as dg
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily

from cio_pipeline.cli.instance import dagster_instance
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.checks.deliver import missed_days
from cio_pipeline.defs.delivered_days import is_delivered
from cio_pipeline.defs.jobs.backfill import customerio_backfill
from cio_pipeline.defs.jobs.hourly import customerio_hourly
from cio_pipeline.defs.jobs.sync import customerio_sync
from cio_pipeline.defs.partitions import day_bounds
from cio_pipeline.masking import mask
from cio_pipeline.settings.settings import Settings
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import OpenRefusals

REASONS = 20
"""The most reasons with a series of their own. The others share one, so that no fault creates thousands of series."""

OTHERS = "other reasons"

JOBS = (customerio_sync.name, customerio_hourly.name, customerio_backfill.name)
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def print_metrics(settings: Settings) -> None:
    """Prints all metrics. If the ledger or Dagster's storage cannot be read, raises before printing anything."""
    ledger = Ledger(settings.ledger_url, settings.ledger_lock_seconds)
    try:
        with dagster_instance(settings) as instance:
            text = in_text(metrics(instance, ledger, datetime.now(UTC)))
    finally:
        ledger.close()
    sys.stdout.write(text)


def in_text(families: Iterable[GaugeMetricFamily]) -> str:
    """Returns the metrics in Prometheus' text format."""
    registry, kept = CollectorRegistry(auto_describe=False), list(families)

    class Families:
        def collect(self) -> Iterable[GaugeMetricFamily]:
            return kept

    registry.register(Families())
    return generate_latest(registry).decode()


def metrics(instance: dg.DagsterInstance, ledger: Ledger, now: datetime) -> Iterator[GaugeMetricFamily]:
    """Yields the metrics at the time `now` (UTC). Those of the newest day, and of the last run of a job, are missing if there
    is none."""
    newest_first = sorted(instance.get_materialized_partitions(DELIVERY), reverse=True)
    if whole := next((day for day in newest_first if is_delivered(instance, day)), None):
        begins, ends = day_bounds(whole)
        yield _one("newest_day_timestamp_seconds", "When the newest completely delivered day began.", begins.timestamp())
        yield _one("newest_day_age_seconds", "How long that day has been over.", (now - ends).total_seconds())
        yield _one("newest_day_events", "Events of that day that Customer.io has accepted.", _events(ledger, whole))
        yield _one("newest_day_new_customers", "Customers that its deliveries created.", ledger.new_customers(whole))
    missed = missed_days(instance, now)
    what = "Days of the last 30 that were skipped, or delivered only in part: days before and after them are delivered."
    yield _one("days_missed", what, len(missed))
    yield _refusals(ledger.open_refusals())
    yield from _last_runs(instance)


def _events(ledger: Ledger, day: str) -> int:
    return ledger.events_delivered([day]).get(day, 0)


def _one(name: str, what: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"cio_pipeline_{name}", what, value)


def _refusals(open_refusals: list[OpenRefusals]) -> GaugeMetricFamily:
    reasons = Counter[str]({OTHERS: 0})
    for place, one in enumerate(open_refusals):
        reasons[mask(one.reason) if place < REASONS else OTHERS] += one.number
    what = "Items, of any day, that Customer.io has refused and not accepted since."
    family = GaugeMetricFamily("cio_pipeline_refusals_open", what, labels=["reason"])
    for reason, items in reasons.items():
        family.add_metric([reason], items)
    return family


def _last_runs(instance: dg.DagsterInstance) -> Iterator[GaugeMetricFamily]:
    labels = ["dagster_job"]
    succeeded = GaugeMetricFamily("cio_pipeline_last_run_succeeded", "1 if the job's last run succeeded.", labels=labels)
    ended = GaugeMetricFamily("cio_pipeline_last_run_end_timestamp_seconds", "When the job's last run ended.", labels=labels)
    seconds = GaugeMetricFamily("cio_pipeline_last_run_duration_seconds", "How long the job's last run took.", labels=labels)
    for job in JOBS:
        for run in instance.get_run_records(dg.RunsFilter(job_name=job, statuses=ENDED), limit=1):
            succeeded.add_metric([job], run.dagster_run.status == dg.DagsterRunStatus.SUCCESS)
            if run.end_time is not None:
                ended.add_metric([job], run.end_time)
                seconds.add_metric([job], run.end_time - (run.start_time or run.end_time))
    yield from (succeeded, ended, seconds)
