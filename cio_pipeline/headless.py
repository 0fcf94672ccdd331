"""Runs the job without the UI, for `make run`: progress line by line, and what went wrong last."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import dagster as dg
import orjson

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.database import DatabaseError
from cio_pipeline.definitions import defs
from cio_pipeline.defs.partitions import RANGE_END, RANGE_START, days
from cio_pipeline.http import Unavailable
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.settings import Settings, SettingsError
from cio_pipeline.storage.files import StorageError
from cio_pipeline.storage.tables import keep_private

SPEAKING = (SettingsError, NotExtracted, NotDelivered, StorageError, Unavailable, DatabaseError)
"""Our own errors: their message is a sentence for the user."""

RECEIPT = ("events sent", "customers sent", "events delivered before", "customers with nothing new", "refused", "requests")
LEFT = (
    "events held as too recent",
    "customers beyond the limit",
    "events beyond the limit",
    "customers suppressed",
    "events suppressed",
)
"""What was not sent by choice: said where there is any."""

SINK = "customerio_delivery.upsert_to_customerio"


class Lines(logging.Handler):
    """Prints what the assets say of their progress, and nothing of Dagster's own events."""

    def emit(self, record: logging.LogRecord) -> None:
        """Prints the message alone, as one line; Dagster's own are events, or warnings."""
        said = getattr(record, "dagster_meta", {})
        if record.levelno == logging.INFO and said.get("dagster_event") is None and "orig_message" in said:
            print(said["orig_message"], flush=True)


@dg.logger
def lines(_: dg.InitLoggerContext) -> logging.Logger:
    """The logger of a headless run, in place of Dagster's console."""
    logger = logging.Logger("lines", logging.INFO)
    logger.addHandler(Lines())
    return logger


class DaysError(Exception):
    """The days asked for are no partitions; the message says why."""


def run_days(first: str, last: str, settings: Settings, chosen: dict[str, Any]) -> int:
    """Runs `customerio_sync` for the days, a few a run; gives 0 where everything was delivered, else 1.

    `chosen` is the sink's run config (`defs.deliver.Delivery`); a dry run gives 0 where it could be planned.
    """
    keys = _keys(first, last)
    keep_private()
    refused = 0
    with _instance(settings) as instance:
        for start in range(0, len(keys), settings.days_per_run):
            chunk = keys[start : start + settings.days_per_run]
            try:
                receipts = _run(chunk, instance, chosen)
            except Exception as failure:
                print(_sentence(failure), file=sys.stderr)
                return 1
            refused += sum(_say(day, receipts[day]) for day in chunk)
    if refused:
        print(
            f"Customer.io refused {refused:,} items: the ledger's table `refusals` has each with its reason,"
            " and the job redeliver_refused sends them again.",
            file=sys.stderr,
        )
        return 1
    return 0


def _keys(first: str, last: str) -> list[str]:
    known = days.get_partition_keys()
    for key in (first, last):
        if key not in known:
            raise DaysError(
                f"{key} is no partition: days go from {known[0]} (CIO_START_DATE) to {known[-1]} (yesterday, UTC)."
                if known
                else "There is no partition yet: CIO_START_DATE lies in the future."
            )
    keys = [key for key in known if first <= key <= last]
    if not keys:
        raise DaysError(f"FROM ({first}) comes after TO ({last}).")
    return keys


def _instance(settings: Settings) -> dg.DagsterInstance:
    """DAGSTER_HOME's instance, so that the UI shows the runs; without one, an instance in the data dir."""
    if os.environ.get("DAGSTER_HOME"):
        return dg.DagsterInstance.get()
    home = Path(settings.data_dir if "://" not in settings.data_dir else "data").absolute() / "dagster"
    home.mkdir(parents=True, exist_ok=True)
    return dg.DagsterInstance.local_temp(str(home), overrides={"telemetry": {"enabled": False}})


def _run(chunk: list[str], instance: dg.DagsterInstance, chosen: dict[str, Any]) -> dict[str, dict[str, object]]:
    """Runs the days; gives each day's receipt. Raises what the run failed of."""
    given = {name: value for name, value in chosen.items() if value is not None}
    spoken = dg.Definitions.merge(defs, dg.Definitions(loggers={"lines": lines}))
    result = spoken.resolve_job_def("customerio_sync").execute_in_process(
        instance=instance,
        tags={RANGE_START: chunk[0], RANGE_END: chunk[-1]},
        run_config={
            "loggers": {"lines": {}},
            "ops": {"customerio_delivery": {"ops": {"upsert_to_customerio": {"config": given}}}},
        },
    )
    receipts: list[Any] = [*result.asset_materializations_for_node(SINK), *result.asset_observations_for_node(SINK)]
    return {str(receipt.partition): {name: value.value for name, value in receipt.metadata.items()} for receipt in receipts}


def _say(day: str, receipt: dict[str, object]) -> int:
    """Prints a day's receipt; gives how many of its items are refused."""
    if "dry run" in receipt:
        print(f"{day}, if it were run (nothing was sent):")
        for name, value in receipt.items():
            if name != "dry run":
                print(f"  {name}: {orjson.dumps(value).decode() if isinstance(value, dict | list) else value}", flush=True)
        return 0
    counts = {name: int(str(receipt.get(name, 0))) for name in RECEIPT + LEFT if name in RECEIPT or receipt.get(name)}
    print(f"{day}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()) + ".", flush=True)
    return counts["refused"]


def _sentence(failure: BaseException) -> str:
    """Our own error among the causes, in its own words; of any other no more than its kind, for it may quote data."""
    causes = [failure]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None and cause not in causes:
        causes.append(cause)
    for cause in causes:
        if isinstance(cause, SPEAKING):
            return str(cause)
    unexpected = next((cause for cause in causes if not type(cause).__module__.startswith("dagster")), failure)
    *_, where = traceback.extract_tb(unexpected.__traceback__)
    place = f"{Path(where.filename).name}:{where.lineno}"
    return f"The run failed: {type(unexpected).__name__} at {place}. Dagster's log of the run has the details."
