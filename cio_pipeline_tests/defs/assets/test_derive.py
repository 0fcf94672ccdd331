"""The checks of what was derived: they name what is wrong and what to do, and end no run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import asset_key
from cio_pipeline.defs.checks.common import list_days, or_warning
from cio_pipeline.defs.checks.derive import few_refused_by_the_rules
from cio_pipeline.defs.partitions import RANGE_END, RANGE_START
from cio_pipeline.defs.resources import StoreResource
from cio_pipeline.pipeline.accounting import DayCounts, discrepancies
from cio_pipeline.pipeline.derive import DERIVED, derive_day
from cio_pipeline.rules.options import Options
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.load import load_settings
from cio_pipeline.state.database import DatabaseError
from cio_pipeline.state.identities import Identities
from cio_pipeline.tables.files import StorageError
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.defs.assets.test_deliver import EVENTS
from cio_pipeline_tests.postgres import Server, server
from cio_pipeline_tests.receipts import rows as rows_of
from cio_pipeline_tests.rules.streams import event, frame

DAY = "2025-01-01"
CHECKS_WITHOUT_A_RUN = (
    "counts_agree_with_posthog",
    "as_many_events_as_usual",
    "attributes_given",
    "every_event_accounted_for",
    "few_refused_by_the_rules",
    "emails_not_shared",
    "earlier_days_learned",
    "later_days_up_to_date",
    "nothing_refused",
    "yesterday_delivered",
    "no_day_missed",
)


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[customerio.CustomerioServer]:
    monkeypatch.setattr("cio_pipeline.http.retry.BACKOFF_SECONDS", 0.001)
    with posthog.serve(iter(EVENTS)) as source, customerio.serve() as workspace:
        for name, value in Sandbox(source.url, workspace.url).environment(tmp_path / "data", date(2025, 1, 1)).items():
            monkeypatch.setenv(name, value)
        yield workspace


@pytest.fixture
def postgresql(monkeypatch: pytest.MonkeyPatch, workspace: customerio.CustomerioServer) -> Iterator[Server]:
    with server() as started:
        monkeypatch.setenv("CIO_LEDGER_URL", started.url)
        yield started


def run(day: str = DAY) -> tuple[dg.ExecuteInProcessResult, dict[str, Any]]:
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("customerio_sync")
        result = job.execute_in_process(instance=instance, partition_key=day, raise_on_error=False)
        return result, {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_a_postgresql_that_restarts_in_a_delivery_is_waited_for_and_a_check_in_the_pause_only_warns(
    workspace: customerio.CustomerioServer, postgresql: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.defs.delivery.run_delivery.RETRY_SECONDS", 1)
    asked = Identities.out_of_date

    def stopped(number: int, path: str) -> None:
        if number == 2:
            postgresql.stop()

    def restarted_after(*arguments: Any) -> list[str]:
        try:
            return asked(*arguments)
        finally:
            postgresql.start()

    workspace.faults = stopped
    monkeypatch.setattr(Identities, "out_of_date", restarted_after)
    result, checks = run()
    assert result.success
    assert workspace.workspace.totals() == {"people": 2, "events": 4}
    check = checks["later_days_up_to_date"]
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert check.description.startswith("This could not be checked. The ledger's database (CIO_LEDGER_URL) cannot be used: ")
    assert checks["nothing_refused"].passed


def test_checks_that_pass_have_numbers_and_nothing_to_say(
    workspace: customerio.CustomerioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.defs.checks.deliver.day_due", lambda now: DAY)
    _, checks = run()
    assert {name: (check.passed, check.description) for name, check in checks.items()} == dict.fromkeys(
        CHECKS_WITHOUT_A_RUN, (True, None)
    )
    for check in checks.values():
        assert any(isinstance(value.value, int | float) for value in check.metadata.values()), check.check_name


def test_every_check_says_what_it_checks() -> None:
    graph = defs.resolve_asset_graph()
    assert {check.name for check in graph.asset_check_keys} == set(CHECKS_WITHOUT_A_RUN)
    assert all((graph.get_check_spec(check).description or "").startswith("Whether ") for check in graph.asset_check_keys)


def test_days_that_are_not_known_and_days_to_derive_again_are_named_with_what_to_do(
    workspace: customerio.CustomerioServer,
) -> None:
    """And the checks of it can be run alone."""
    with dg.DagsterInstance.ephemeral() as instance:
        job = defs.resolve_job_def("customerio_sync")
        result = job.execute_in_process(instance=instance, partition_key="2025-01-03")
        [check] = [one for one in result.get_asset_check_evaluations() if one.check_name == "earlier_days_learned"]
        assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert check.description == (
            "What these days say about people is not known: 2025-01-01, 2025-01-02. If you need them, run the job"
            " customerio_backfill for them (`make run FROM=2025-01-01 TO=2025-01-02`), then the days that the check"
            " later_days_up_to_date names. If you do not want them, set CIO_START_DATE later."
        )
        job.execute_in_process(instance=instance, tags={RANGE_START: DAY, RANGE_END: "2025-01-02"})
        checks = alone(instance)
        assert checks["earlier_days_learned"].passed
        check = checks["later_days_up_to_date"]
        assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
        assert check.description == (
            "Earlier days have been learned since these were derived: 2025-01-03. Materialize customers, events and rejects for"
            " them again, then customerio_delivery."
        )
        job.execute_in_process(instance=instance, partition_key="2025-01-03")
        assert alone(instance)["later_days_up_to_date"].passed


def alone(instance: dg.DagsterInstance) -> dict[str, dg.AssetCheckEvaluation]:
    """What the checks find that need no run of a day."""
    result = defs.resolve_job_def("customerio_checks").execute_in_process(instance=instance)
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def test_r15_a_day_that_does_not_add_up_is_not_delivered(
    workspace: customerio.CustomerioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(day: str, *arguments: Any, **workers: Any) -> DayCounts:
        day_counts = derive_day(day, *arguments, **workers)
        day_counts.outcomes["sent"] -= 1
        return day_counts

    monkeypatch.setattr("cio_pipeline.defs.store.derive_day", forgetful)
    result, checks = run()
    assert not result.success
    assert workspace.workspace.totals()["events"] == 0
    assert checks["every_event_accounted_for"].metadata["days that are off"].value == 1
    description = checks["every_event_accounted_for"].description
    assert f"of {DAY}, 4 events are sent, but this many were counted: 3. Materialize customers, events and" in description


def derived(folder: Path) -> Days:
    product = Days(str(folder), Options(anonymous_users="identified", stitch_anonymous_days=7))
    listed: dict[str, Any] = {"$anon_distinct_id": "anon"}
    days = {
        "2026-03-01": [event("visit", "anon", at="2026-03-01T10:00Z")],
        "2026-03-02": [
            event("$identify", "u1", at="2026-03-02T10:00Z", **listed),
            event("visit", "nobody", at="2026-03-02T10:00Z"),
            event("visit", " ", at="2026-03-02T10:00Z"),
            event("visit", "u1", at="2026-03-02T11:00Z", set_={"id": 7}),
        ],
    }
    for day, events in days.items():
        product.extract(day, frame(*events), shards=2)
        product.learn(day)
        product.derive(day)
    return product


def test_r15_is_recounted_from_the_tables_on_disk(tmp_path: Path) -> None:
    product = derived(tmp_path)
    for day in ("2026-03-01", "2026-03-02"):
        assert discrepancies(day, product.counts_by_day[day], product.tables) == []
    day_counts = product.counts_by_day["2026-03-02"]
    assert (day_counts.outcomes.total(), day_counts.outcomes["sent"], day_counts.stitched) == (4, 2, 1)


@pytest.mark.parametrize(
    ("outcome", "change", "said"),
    [
        ("sent", 1, ["2 events are sent, but this many were counted: 3"]),
        ("filtered: x", 1, ["4 events were extracted, but this many are sent, filtered or refused: 5"]),
        ("refused: x", 1, ["0 events are refused as 'x', but this many were counted: 1"]),
        (None, 1, ["1 events of earlier days are sent, but this many were counted: 2"]),
    ],
)
def test_r15_each_count_is_compared(tmp_path: Path, outcome: str | None, change: int, said: list[str]) -> None:
    product = derived(tmp_path)
    day_counts = product.counts_by_day["2026-03-02"]
    if outcome is None:
        day_counts.stitched += change
    else:
        day_counts.outcomes[outcome] += change
    assert discrepancies("2026-03-02", day_counts, product.tables) == said


def test_r15_a_reason_that_only_the_table_has_is_found(tmp_path: Path) -> None:
    product = derived(tmp_path)
    day_counts = product.counts_by_day["2026-03-02"]
    del day_counts.outcomes["refused: distinct_id is blank (R14)"]
    assert discrepancies("2026-03-02", day_counts, product.tables) == [
        "1 events are refused as 'distinct_id is blank (R14)', but this many were counted: 0"
    ]


def test_r15_a_row_too_few_on_disk_is_found(tmp_path: Path) -> None:
    product = derived(tmp_path)
    day_counts = product.counts_by_day["2026-03-02"]
    kept = pd.concat(product.tables.read("events", "2026-03-02"))
    nothing = {name: schema.empty_table() for name, schema in DERIVED.items()}
    with product.tables.replace("2026-03-02", DERIVED) as new:
        events = kept[kept["timestamp"] >= pd.Timestamp("2026-03-02", tz="UTC")]
        new.shards.append(new.writer.write(0, {**nothing, "events": events}))
    assert discrepancies("2026-03-02", day_counts, product.tables) == [
        "4 events were extracted, but this many are sent, filtered or refused: 3",
        "0 events of earlier days are sent, but this many were counted: 1",
        "0 events are refused as 'distinct_id is blank (R14)', but this many were counted: 1",
    ]


def test_more_refused_than_is_allowed_is_said_by_day_with_the_reasons(tmp_path: Path) -> None:
    counts_by_day = derived(tmp_path).counts_by_day
    assert few_refused_by_the_rules(counts_by_day, 0.25).passed
    check = few_refused_by_the_rules(counts_by_day, 0.01)
    assert (check.passed, check.severity, check.asset_key) == (False, dg.AssetCheckSeverity.WARN, asset_key("rejects"))
    assert (check.description or "").startswith(
        "The rules refused 25 % of 4 events of 2026-03-02 (1 because distinct_id is blank (R14)). CIO_REFUSED_SHARE allows 1 %."
    )
    assert {name: value.value for name, value in check.metadata.items()} == {
        "events extracted": 5,
        "events refused": 1,
        "largest refused share of a day": 0.25,
        "refused share allowed": 0.01,
        "days beyond that": 1,
    }


def test_many_days_are_named_by_the_first_and_the_last() -> None:
    assert list_days([f"2025-01-{day:02d}" for day in range(1, 23)]).endswith("2025-01-20 and 2 more, to 2025-01-22")


@pytest.mark.parametrize("error", [StorageError("Gone."), DatabaseError("Gone.")])
def test_a_check_that_cannot_be_made_warns_and_says_why(error: Exception) -> None:
    def fail() -> dg.AssetCheckResult:
        raise error

    found = or_warning(fail)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.description == "This could not be checked. Gone."


def test_a_run_closes_what_it_opened(workspace: customerio.CustomerioServer) -> None:
    with StoreResource().yield_for_execution(dg.build_init_resource_context()) as store:
        store.ledger.refused_by_reason()
        assert ledger_files()
    assert not ledger_files()


def ledger_files() -> list[str]:
    """The open files of the ledger."""
    path = load_settings().ledger_url.removeprefix("sqlite:///")
    links = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir() if link.exists()]
    return [link for link in links if link.startswith(path)]


def test_each_day_of_a_run_tells_the_rows_of_each_table_and_what_became_of_its_events(
    workspace: customerio.CustomerioServer,
) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        tags = {RANGE_START: DAY, RANGE_END: "2025-01-02"}
        result = defs.resolve_job_def("customerio_sync").execute_in_process(instance=instance, tags=tags)
    told = {
        (event.asset_key.path[-1], event.partition): event.materialization.metadata
        for event in result.get_asset_materialization_events()
        if event.asset_key is not None
    }
    rows = {key: told[key]["dagster/partition_row_count"].value for key in told if key[0] in ("customers", "events", "rejects")}
    assert rows == {
        **{("customers", DAY): 2, ("events", DAY): 4, ("rejects", DAY): 0},
        **{(name, "2025-01-02"): 0 for name in ("customers", "events", "rejects")},
    }
    assert [told["events", day]["extracted"].value for day in (DAY, "2025-01-02")] == [4, 0]
    assert rows_of(told["events", DAY]["outcomes"].value) == {"sent": 4, "in all": 4}
