"""The job `customerio_backfill`, and what it shares with the command line: a range of days, several per run, in one process.

A run then costs about a second, instead of the ten that Dagster takes to queue and start one; the range is not limited to the
90 days of the UI's dialog; and a day that fails does not stop the others.
"""

import logging
import sqlite3
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import dagster as dg
from pydantic import Field

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.defs.assets.deliver import DeliveryConfig, customerio_delivery
from cio_pipeline.defs.assets.derive import customers_events_rejects
from cio_pipeline.defs.assets.extract import identities, identity_history, posthog_events
from cio_pipeline.defs.failures import (
    MAX_FAILURES,
    MAX_RETRIES,
    DaysFailed,
    RunNotStarted,
    failed_in_a_row,
    with_readable_failures,
)
from cio_pipeline.defs.jobs.sync import customerio_sync
from cio_pipeline.defs.partitions import DAYS_IN_ALL, DAYS_SETTINGS, RANGE_END, RANGE_START, days_asked_for, days_tag
from cio_pipeline.errors import PipelineError, causes

logger = logging.getLogger(__name__)

AFTER_EXTRACTION = [identity_history.key, identities.key, *customers_events_rejects.keys, *customerio_delivery.keys]

STARTED_BY = "cio_pipeline/started_by"
"""The tag of a run with the id of the run of `customerio_backfill` that started it."""

SILENT = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
"""Run config without Dagster's own console, which prints each of its events."""

Assets = Sequence[dg.AssetKey] | None
"""The assets of a run, or None for all of `customerio_sync`."""

RunDays = Callable[[str, list[str], Assets], None]
"""Runs days, with the run's id, the days and the assets. Raises the error that the run fails with."""


def run_range(instance: dg.DagsterInstance, days: list[str], run_days: RunDays, days_per_run: int) -> None:
    """Runs the days, oldest first, `days_per_run` per run. If days of a run fail, the others go on without them.

    Raises `DaysFailed`, which names the failed days, at the end, or once `MAX_FAILURES` days have failed in a row. An error
    that every day would meet is raised at once: a wrong setting or key, whatever stops a delivery before its first request
    (limits, earlier days), a full disk. If there is only one day, its error is raised as it is.
    """
    backfill = _Backfill(instance, days, run_days)
    for start in range(0, len(days), days_per_run):
        backfill.run(days[start : start + days_per_run])
    if backfill.failed:
        raise backfill.failure()


@dataclass
class _Backfill:
    """A range of days, with those that have failed so far, and why."""

    instance: dg.DagsterInstance
    days: list[str]
    run_days: RunDays
    failed: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)

    def run(self, days: list[str], assets: Assets = None) -> None:
        """Runs these days in one run. If it fails, runs again those that do not need the others: the days that were extracted,
        if some were not, otherwise each day alone."""
        run_id = str(uuid.uuid4())
        try:
            self.run_days(run_id, days, assets)
        except Exception as error:
            self._raise_lasting_error(error)
            extracted = days if assets else self._extracted(run_id)
            missing = [day for day in days if day not in extracted]
            if len(days) == 1:
                self._note(days, error)
            elif extracted and missing:
                self._note(missing, error)
                for consecutive in self._consecutive(extracted):
                    self.run(consecutive, AFTER_EXTRACTION)
            else:
                for day in days:
                    self.run([day], AFTER_EXTRACTION if extracted else None)

    def failure(self) -> DaysFailed:
        """Returns the error that names the failed days, and why they failed."""
        what = f"{len(self.failed)} of {len(self.days)} days failed ({', '.join(self.failed)})"
        return DaysFailed(f"{what}; run them again once the cause is fixed. {' '.join(self.reasons)}")

    def _raise_lasting_error(self, error: Exception) -> None:
        """Raises the error if the other days would meet it, too, or if there are none."""
        ours = _ours(error)
        is_about_days = not isinstance(ours, NotDelivered) if ours else not any(map(_is_machine_error, causes(error)))
        if len(self.days) > 1 and is_about_days and not isinstance(error, RunNotStarted):
            return
        if not self.failed:
            raise error
        self.reasons.append(f"Then the backfill stopped: {ours or type(error).__name__}")
        raise self.failure() from error

    def _consecutive(self, days: list[str]) -> list[list[str]]:
        """Returns the days in lists of consecutive ones."""
        groups = groupby(enumerate(days), lambda numbered: self.days.index(numbered[1]) - numbered[0])
        return [[day for _, day in group] for _, group in groups]

    def _extracted(self, run_id: str) -> list[str]:
        logs = self.instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
        events = [entry.dagster_event for entry in logs if entry.dagster_event is not None]
        return sorted({str(event.partition) for event in events if event.asset_key == posthog_events.key})

    def _note(self, days: list[str], error: Exception) -> None:
        self.failed += days
        why = str(_ours(error) or type(error).__name__)
        self.reasons.append(f"{days[0]}: {why}" if len(days) == 1 else why)
        logger.warning("%s", self.reasons[-1])
        if failed_in_a_row(self.days, self.failed, last=days[-1]):
            self.reasons.append(f"After {MAX_FAILURES} failures in a row, the days after {days[-1]} were not run.")
            raise self.failure() from error


def _ours(error: BaseException) -> PipelineError | None:
    """Returns our own error among the causes, whose message may be shown, or None."""
    return next((cause for cause in causes(error) if isinstance(cause, PipelineError)), None)


def _is_machine_error(error: BaseException) -> bool:
    return isinstance(error, OSError | sqlite3.Error)


class BackfillConfig(DeliveryConfig):
    """The days, and the options of their deliveries."""

    first: str = Field(default="YYYY-MM-DD", alias="from", description="The first day.")
    last: str = Field(default="yesterday", alias="to", description="The last day, YYYY-MM-DD, or yesterday (UTC).")


def run_config(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the run config of `customerio_sync` for these options of `DeliveryConfig`, without Dagster's own console."""
    given = {name: value for name, value in chosen.items() if value is not None}
    delivery = {customerio_delivery.node_def.name: {"ops": {"upsert_to_customerio": {"config": given}}}}
    return {**SILENT, "ops": delivery}


def run_tags(days: list[str], all_days: list[str]) -> dict[str, str]:
    """Returns the tags of a run of these days. all_days: those of the backfill, which decides itself what to run again, so
    Dagster does not retry the run."""
    return {RANGE_START: days[0], RANGE_END: days[-1], DAYS_IN_ALL: str(len(all_days)), MAX_RETRIES: "0"}


@dg.op(out=dg.Out(dg.Nothing), required_resource_keys={"store"})
@with_readable_failures
def run_days(context: dg.OpExecutionContext, config: BackfillConfig) -> None:
    """Runs the days in this process, several per run. Dagster lists each run, and shows its days on the assets."""
    from cio_pipeline.definitions import defs  # which imports this module

    days = days_asked_for(config.first, config.last)
    context.instance.add_run_tags(context.run_id, days_tag({RANGE_START: days[0], RANGE_END: days[-1]}))
    job = defs.resolve_job_def(customerio_sync.name)
    chosen = config.model_dump(exclude={"first", "last"})

    def run(run_id: str, part: list[str], assets: Assets) -> None:
        tags = {**run_tags(part, days), STARTED_BY: context.run_id}
        job.execute_in_process(run_config(chosen), context.instance, run_id=run_id, tags=tags, asset_selection=assets)

    run_range(context.instance, days, run, DAYS_SETTINGS.days_per_run)
    logger.info("%s to %s: %d days were run.", days[0], days[-1], len(days))


@dg.job(
    config={"ops": {"run_days": {"config": {"from": "YYYY-MM-DD", "to": "yesterday"}}}},
    executor_def=dg.in_process_executor,
    tags={"dagster/max_runtime": "0"},
)
def customerio_backfill() -> None:
    """Delivers any range of days from PostHog to Customer.io. Launchpad: from, to. (The dialog of partitions shows only 90
    days.)"""
    run_days()
