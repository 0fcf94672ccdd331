"""Backfills of a range: a day that fails is named and stops no other, and what would stop them all stops at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.events import StepMaterializationData

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.definitions import defs
from cio_pipeline.defs import store
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.assets import extract
from cio_pipeline.defs.assets.extract import posthog_events
from cio_pipeline.defs.failures import DaysFailed, RunNotStarted
from cio_pipeline.defs.jobs.backfill import AFTER_EXTRACTION, STARTED_BY, Assets, run_range
from cio_pipeline.defs.jobs.sync import customerio_sync
from cio_pipeline.http.retry import Unavailable
from cio_pipeline.posthog.source import NotExtracted
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.tables.files import StorageError

DAYS = [f"2025-01-0{number}" for number in range(1, 7)]


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[customerio.CustomerioServer]:
    """A Customer.io, and a PostHog with an event of somebody else on each day."""
    events = [
        {"uuid": f"00000000-0000-4000-8000-{number:012}", "event": "visit", "distinct_id": f"u{number}", "properties": {}}
        | {"timestamp": f"{day}T10:00:00Z"}
        for number, day in enumerate(DAYS)
    ]
    with posthog.serve(iter(events)) as source, customerio.serve() as server:
        for name, value in Sandbox(source.url, server.url).environment(tmp_path / "data", date(2025, 1, 1)).items():
            monkeypatch.setenv(name, value)
        yield server


@contextmanager
def failing(module: Any, function: str, failure: Exception, *failing: str) -> Iterator[None]:
    """A function whose first argument is a day fails for these days."""

    def called(day: str, *given: Any, **named: Any) -> Any:
        if day in failing:
            raise failure
        return original(day, *given, **named)

    with pytest.MonkeyPatch.context() as patch:
        original = getattr(module, function)
        patch.setattr(module, function, called)
        yield


def backfill(instance: dg.DagsterInstance, **config: Any) -> str:
    """Runs the job; gives the sentence that it failed of."""
    given = {"from": DAYS[0], "to": DAYS[-1], **config}
    result = defs.resolve_job_def("customerio_backfill").execute_in_process(
        run_config={"ops": {"run_days": {"config": given}}}, instance=instance, raise_on_error=False
    )
    failure = [event for event in result.all_events if event.is_step_failure]
    assert result.success == (not failure)
    return str(failure[0].step_failure_data.user_failure_data.description) if failure else ""  # type: ignore[union-attr]


def arrived(server: customerio.CustomerioServer) -> list[str]:
    """Of which day's somebody an event has arrived."""
    return [day for number, day in enumerate(DAYS) if server.workspace.person(f"u{number}")]


def test_a_day_that_cannot_be_extracted_is_named_and_the_others_are_delivered(
    workspace: customerio.CustomerioServer, instance: dg.DagsterInstance
) -> None:
    with failing(extract, "read_day", NotExtracted("PostHog gave 1 of 2 events."), DAYS[2]):
        said = backfill(instance, to=DAYS[3])
    assert said.startswith(f"1 of 4 days failed ({DAYS[2]}); run them again once the cause is fixed.")
    assert f"{DAYS[2]}: PostHog gave 1 of 2 events." in said
    assert arrived(workspace) == [day for day in DAYS[:4] if day != DAYS[2]]
    assert instance.get_materialized_partitions(DELIVERY) == set(DAYS[:4]) - {DAYS[2]}
    events = workspace.workspace.totals()
    assert backfill(instance, to=DAYS[3]) == ""
    assert workspace.workspace.totals()["events"] == events["events"] + 1
    assert workspace.workspace.totals().get("duplicates", 0) == events.get("duplicates", 0)


def test_a_day_that_cannot_be_derived_is_named_and_the_others_are_delivered(
    workspace: customerio.CustomerioServer, instance: dg.DagsterInstance
) -> None:
    with failing(store, "derive_day", StorageError("A shard is missing."), DAYS[0]):
        assert f"{DAYS[0]}: A shard is missing." in backfill(instance, to=DAYS[1])
    assert arrived(workspace) == [DAYS[1]]


def test_the_runs_of_a_backfill_say_their_days_and_who_started_them(
    workspace: customerio.CustomerioServer, instance: dg.DagsterInstance
) -> None:
    assert backfill(instance, to=DAYS[1]) == ""
    runs = {run.job_name: run for run in instance.get_runs()}
    assert {run.tags["days"] for run in runs.values()} == {f"{DAYS[0]} to {DAYS[1]}"}
    assert runs["customerio_sync"].tags[STARTED_BY] == runs["customerio_backfill"].run_id


def test_a_limit_stops_a_backfill_before_its_first_request(
    workspace: customerio.CustomerioServer, instance: dg.DagsterInstance
) -> None:
    assert "new customers" in backfill(instance, to=DAYS[2], max_new_customers=2)
    assert arrived(workspace) == []


def test_a_day_that_is_no_partition_is_refused(workspace: customerio.CustomerioServer, instance: dg.DagsterInstance) -> None:
    assert backfill(instance, **{"from": "2024-12-31"}).startswith("2024-12-31 is not a partition")
    assert len(instance.get_runs()) == 1


class Runs:
    """Runs that fail where they have one of these days."""

    def __init__(self, failures: dict[str, Exception]) -> None:
        self.failures, self.made = failures, list[tuple[str, str]]()

    def __call__(self, run_id: str, days: list[str], assets: Assets) -> None:
        assert assets in (None, AFTER_EXTRACTION)
        self.made.append((days[0], days[-1]))
        for day in days:
            if day in self.failures:
                raise self.failures[day]


def ran(instance: dg.DagsterInstance, runs: Runs, days_per_run: int = 1) -> str:
    with pytest.raises(DaysFailed) as failure:
        run_range(instance, DAYS, runs, days_per_run)
    return str(failure.value)


def test_after_three_days_in_a_row_that_fail_the_others_are_not_run(instance: dg.DagsterInstance) -> None:
    runs = Runs(dict.fromkeys([DAYS[0], *DAYS[2:5]], Unavailable("PostHog is away.")))
    assert f"4 of 6 days failed ({DAYS[0]}, {', '.join(DAYS[2:5])})" in ran(instance, runs)
    assert runs.made[-1] == (DAYS[4], DAYS[4])


def test_a_run_of_several_days_that_fails_with_an_unforeseen_error_is_run_day_by_day(instance: dg.DagsterInstance) -> None:
    runs = Runs({DAYS[1]: ValueError("jane@example.com")})
    assert f"{DAYS[1]}: ValueError" in ran(instance, runs, 3)
    assert runs.made == [(DAYS[0], DAYS[2]), *((day, day) for day in DAYS[:3]), (DAYS[3], DAYS[5])]


def test_several_days_that_fail_with_an_unforeseen_error_while_others_were_extracted_name_its_kind(
    instance: dg.DagsterInstance,
) -> None:
    def run(run_id: str, days: list[str], assets: Assets) -> None:
        if assets is None:
            data = StepMaterializationData(dg.AssetMaterialization(posthog_events.key, partition=days[0]))
            kind = dg.DagsterEventType.ASSET_MATERIALIZATION.value
            event = dg.DagsterEvent(kind, customerio_sync.name, event_specific_data=data)
            instance.report_dagster_event(event, run_id=run_id)
            raise ValueError("jane@example.com")

    with pytest.raises(DaysFailed) as failure:
        run_range(instance, DAYS[:3], run, 3)
    said = str(failure.value)
    assert said == f"2 of 3 days failed ({DAYS[1]}, {DAYS[2]}); run them again once the cause is fixed. ValueError"


@pytest.mark.parametrize("failure", [RunNotStarted("A key is wrong."), NotDelivered("Too many."), OSError(28, "No space left")])
def test_what_would_stop_every_day_stops_at_once(instance: dg.DagsterInstance, failure: Exception) -> None:
    runs = Runs({DAYS[1]: failure})
    with pytest.raises(type(failure)):
        run_range(instance, DAYS, runs, 1)
    assert runs.made == [(DAYS[0], DAYS[0]), (DAYS[1], DAYS[1])]
    runs = Runs({DAYS[0]: Unavailable("PostHog is away."), DAYS[1]: failure})
    said = ran(instance, runs)
    assert f"{DAYS[0]}: PostHog is away." in said
    assert "Then the backfill stopped" in said
    assert runs.made[-1] == (DAYS[1], DAYS[1])


def test_a_launch_without_days_is_refused_and_says_which_there_are(
    workspace: customerio.CustomerioServer, instance: dg.DagsterInstance
) -> None:
    assert backfill(instance, **{"from": "YYYY-MM-DD"}).startswith("YYYY-MM-DD is not a partition: days go from 2025-01-01")
