"""Runs Dagster's jobs in this process, for the command line: prints what they log, and finally what was not delivered."""

from __future__ import annotations

import logging
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import dagster as dg

from cio_pipeline import progress
from cio_pipeline.cli.instance import dagster_instance
from cio_pipeline.cli.summary import Summary
from cio_pipeline.cli.terminal import show
from cio_pipeline.definitions import defs
from cio_pipeline.defs.dagster_storage import keep_engines
from cio_pipeline.defs.jobs.backfill import SILENT, run_config, run_range, run_tags
from cio_pipeline.defs.jobs.dry_run_report import DAYS_BEYOND
from cio_pipeline.defs.partitions import days_between
from cio_pipeline.settings.places import dagster_home, redacted
from cio_pipeline.settings.settings import Settings
from cio_pipeline.state.ledger import Ledger

RECORDED = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_OBSERVATION,
    dg.DagsterEventType.ASSET_CHECK_EVALUATION,
}
"""The events of a run that are read once it has ended."""

See = Callable[[dg.DagsterEvent], None]


class Lines(logging.Handler):
    """Prints each message of the pipeline's loggers as a line, except progress that a bar shows."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints only the message."""
        if not (progress.with_bars and record.name == progress.logger.name):
            message = record.getMessage()
            show(message, indent=" " * (len(message) - len(message.lstrip(" "))))


def run_days(first: str, last: str, settings: Settings, chosen: dict[str, Any]) -> int:
    """Runs `customerio_sync` for the days, several per run. Returns the exit status.

    It is 0 if everything was delivered and no more refused than CIO_REFUSED_SHARE allows, otherwise 1. chosen: the run config
    of the delivery (`defs.assets.deliver.DeliveryConfig`). Raises `DaysError` before anything is run if the days are not
    partitions, and what a run raises, after printing its failed checks.
    """
    all_days = days_between(first, last)
    summary = Summary(settings)
    with _instance(settings) as instance:

        def run_some(run_id: str, days: list[str], assets: Sequence[dg.AssetKey] | None) -> None:
            _run("customerio_sync", instance, run_config(chosen), run_tags(days, all_days), summary.see, run_id, assets)

        try:
            run_range(instance, all_days, run_some, settings.days_per_run)
        except Exception:
            for line in summary.failed_checks():
                show(line)
            raise
        return summary.end()


def run_today(settings: Settings) -> int:
    """Runs `customerio_hourly`, which delivers what today has so far, or logs why it sends nothing. Returns the exit status, 0.

    Raises what the run raises.
    """
    with _instance(settings) as instance:
        _run("customerio_hourly", instance, {}, {}, lambda _: None)
    return 0


def dry_run(first: str, last: str, settings: Settings, chosen: dict[str, Any]) -> int:
    """Runs `customerio_dry_run` for the days, which logs what would be sent. Returns the exit status, which is 1 if the rules
    would refuse more of a day's events than CIO_REFUSED_SHARE allows.

    chosen: run config (`defs.jobs.dry_run.DryRunConfig`). Raises `DaysError` if the days are not partitions.
    """
    days_between(first, last)
    beyond: list[Any] = []

    def see(event: dg.DagsterEvent) -> None:
        if event.event_type == dg.DagsterEventType.ASSET_OBSERVATION:
            metadata = event.asset_observation_data.asset_observation.metadata
            beyond.append(metadata[DAYS_BEYOND].value)

    with _instance(settings) as instance:
        config = {"preview_delivery": {"config": {**_given(chosen), "from": first, "to": last}}}
        _run("customerio_dry_run", instance, {**SILENT, "ops": config}, {}, see)
    return 1 if any(beyond) else 0


def redeliver(settings: Settings, chosen: dict[str, Any]) -> int:
    """Runs `redeliver_refused`. Returns the exit status, which is 1 if any of the chosen items is still refused: again, for
    whatever reason, or because it was not sent.

    chosen: the job's config (`defs.jobs.redeliver.RedeliveryConfig`).
    """
    given, summary = _given(chosen), Summary(settings)
    with _instance(settings) as instance, closing(Ledger(settings.ledger_url, settings.ledger_lock_seconds)) as ledger:
        items = ledger.refused_items(given.get("partition"), given.get("reason"))
        _run("redeliver_refused", instance, {**SILENT, "ops": {"send_refused_again": {"config": given}}}, {}, summary.see)
        chosen_now = ledger.refused_items(given.get("partition"), given.get("reason"))
        still_refused = chosen_now | items & ledger.refused_items(given.get("partition"))
    for line in summary.failed_checks():
        show(line)
    return 1 if still_refused else 0


def _given(chosen: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in chosen.items() if value is not None}


@contextmanager
def _instance(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Prints where the command reads and writes, and opens Dagster's instance."""
    show(_places(settings, dagster_home(settings.data_dir)))
    keep_engines()
    with dagster_instance(settings) as instance:
        yield instance


def _places(settings: Settings, home: Path) -> str:
    source = settings.batch_export_url if settings.event_source == "batch_export" else settings.posthog_url
    return (
        f"Reads {redacted(source)}, sends to {redacted(settings.tracking_url)}; the tables are in"
        f" {redacted(settings.data_dir)}, the ledger is {redacted(settings.ledger_url)}, Dagster's runs are in {home}."
    )


def _run(
    job: str,
    instance: dg.DagsterInstance,
    config: dict[str, Any],
    tags: dict[str, str],
    see: See,
    run_id: str = "",
    assets: Sequence[dg.AssetKey] | None = None,
) -> None:
    """Runs the job, or these of its assets, prints what it logs, and passes what Dagster has recorded to `see`, even if it
    fails.

    Raises the error that the run failed with, or `KeyboardInterrupt` after Ctrl-C.
    """
    run_id = run_id or str(uuid.uuid4())
    with _printed():
        try:
            defs.resolve_job_def(job).execute_in_process(
                instance=instance, run_id=run_id, tags=tags, run_config=config, asset_selection=assets
            )
        except dg.DagsterExecutionInterruptedError:
            raise KeyboardInterrupt from None
        finally:
            for entry in instance.all_logs(run_id, of_type=RECORDED):
                if entry.dagster_event is not None:
                    see(entry.dagster_event)


@contextmanager
def _printed() -> Iterator[None]:
    """Prints what the pipeline logs during the block. In a terminal, bars show the progress."""
    logger, lines = logging.getLogger("cio_pipeline"), Lines()
    progress.with_bars = sys.stdout.isatty() and sys.stderr.isatty()
    logger.addHandler(lines)
    try:
        yield
    finally:
        logger.removeHandler(lines)
        progress.with_bars = False
