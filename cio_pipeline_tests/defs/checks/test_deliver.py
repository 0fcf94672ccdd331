"""The checks of the delivery: what is refused is shown without anybody's data until it is accepted, missing days are named."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cio_pipeline.cli.commands import main
from cio_pipeline.customerio.counts import LEFT_FOR_ANOTHER_RUN
from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.checks.deliver import DAYS_LOOKED_BACK, _yesterday_delivered, mask_refusal, missed_days
from cio_pipeline.defs.checks.yesterday import day_due
from cio_pipeline.defs.delivered_days import Delivery, last_delivery
from cio_pipeline.defs.jobs import checks as scheduled_checks
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.load import load_days_settings, load_settings
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal
from cio_pipeline_tests.defs.assets.test_deliver import DAY, EVENTS, redeliver, refusing
from cio_pipeline_tests.defs.assets.test_deliver import run as deliver
from cio_pipeline_tests.defs.jobs.test_redeliver import keep_tables

Workspace = customerio.CustomerioServer


@pytest.fixture
def workspace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Workspace]:
    """A Customer.io, with four events of two people in PostHog, and settings that name both."""
    with posthog.serve(iter(EVENTS)) as source, customerio.serve() as server:
        for name, value in Sandbox(source.url, server.url).environment(tmp_path / "data", date(2025, 1, 1)).items():
            monkeypatch.setenv(name, value)
        yield server


def latest(instance: dg.DagsterInstance, name: str) -> dg.AssetCheckEvaluation:
    """What Dagster shows of the check."""
    key = dg.AssetCheckKey(DELIVERY, name)
    record = instance.event_log_storage.get_latest_asset_check_execution_by_key([key])[key]
    assert record.event is not None
    found = record.event.dagster_event
    assert found is not None
    return found.asset_check_evaluation_data


def numbers(check: dg.AssetCheckEvaluation) -> dict[str, Any]:
    return {name: value.value for name, value in check.metadata.items() if isinstance(value.value, int | float)}


def test_what_was_refused_is_open_until_it_is_redelivered_and_then_the_check_and_the_receipt_say_so(
    workspace: Workspace, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "paid")
        deliver(instance)
        failed = latest(instance, "nothing_refused")
        assert (failed.passed, failed.severity, numbers(failed)) == (
            False,
            dg.AssetCheckSeverity.WARN,
            {"refused, open": 1, "reasons": 1},
        )
        assert failed.description == (
            f"1 item that Customer.io refused is still open: 1 for 'required name' ({DAY}). Fix the cause, in PostHog's data"
            " or in Customer.io's workspace; then send them again with the job redeliver_refused (`make redeliver`), all or by"
            " partition and reason."
        )
        table: Any = failed.metadata["refused, the first 50"]
        [row] = table.records
        assert {**row.data, "Customer.io's message": ""} == {
            "day": DAY,
            "key": "id j***e",
            "event": "paid",
            "reason": "required name",
            "Customer.io's message": "",
        }
        redeliver(instance)
        assert not latest(instance, "nothing_refused").passed
    redeliver(instance)
    passed = latest(instance, "nothing_refused")
    assert (passed.passed, passed.description, numbers(passed)) == (True, None, {"refused, open": 0, "reasons": 0})
    wanted = dg.AssetRecordsFilter(asset_key=DELIVERY, asset_partitions=[DAY])
    seen = [record.event_log_entry.asset_observation for record in instance.fetch_observations(wanted, limit=9).records]
    told = [{name: value.value for name, value in one.metadata.items()} for one in seen if one is not None]
    assert [(one["redelivery"], one["refused, open"], one["delivered in all"]) for one in told] == [(True, 0, 4), (True, 1, 3)]


def test_redelivery_with_nothing_refused_evaluates_the_check_too(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    redeliver(instance)
    assert latest(instance, "nothing_refused").passed


def test_the_command_line_says_what_is_refused_again(
    workspace: Workspace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    event = {"type": "person", "action": "event", "name": "paid", "timestamp": 1735725600, "id": "01JGGZ0000000000000000000A"}
    operation = json.dumps({**event, "identifiers": {"id": "jane"}, "attributes": {}})
    refused = Refusal(str(event["id"]), "event", "required name", "", operation, "id:jane")
    ledger = Ledger(load_settings().ledger_url)
    ledger.acknowledge(DAY, Acknowledgement(refused=[refused]))
    keep_tables(DAY, [refused])
    refusing(workspace, monkeypatch, "paid")
    assert main(["redeliver"]) == 1
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith(
        "The check nothing_refused of customerio_delivery failed: 1 item that Customer.io refused is still open: 1 for"
    ), said
    assert main(["redeliver", "--reason", "another"]) == 1
    said = capsys.readouterr()
    assert "No refusal has this partition and reason. Still refused: 1 for required name" in said.out + said.err


def test_a_refused_item_shows_nothing_of_what_it_holds() -> None:
    operation = {
        "type": "person",
        "action": "event",
        "name": "joe@example.com paid",
        "identifiers": {"id": "user-4711"},
        "attributes": {"plan": "Premium Gold", "city": ["Bonn"], "age": 41, "vip": True},
    }
    message = "event paid: attributes.plan 'premium go...' of USER-4711 in bonn (41) is true, at most 5 for plan"
    refused = Refusal("item", "event", "invalid plan", message, json.dumps(operation), "id:user-4711")
    assert mask_refusal(DAY, refused) == {
        "day": DAY,
        "key": "id us***11",
        "event": "j***@e***.com paid",
        "reason": "invalid plan",
        "Customer.io's message": "event paid: attributes.plan '*** ***...' of ***-*** in *** (***) is ***, at most 5 for plan",
    }
    upsert = Refusal("item", "customer", "invalid", "", json.dumps(operation), "id:user-4711")
    assert mask_refusal(DAY, upsert)["event"] == "(attributes)"


@pytest.mark.parametrize(
    ("now", "due"),
    [
        ("2026-03-10T08:59:59+00:00", "2026-03-08"),
        ("2026-03-10T09:00:00+00:00", "2026-03-09"),
        ("2026-03-10T10:30:00+02:00", "2026-03-08"),
        ("2025-01-02T08:00:00+00:00", None),
        ("2025-01-02T09:00:00+00:00", "2025-01-01"),
    ],
)
def test_yesterday_is_due_from_a_time_on(now: str, due: str | None) -> None:
    assert day_due(datetime.fromisoformat(now)) == due


@pytest.mark.parametrize(
    ("nightly", "by", "zone", "now", "due"),
    [
        ("00:30", "06:00", "America/New_York", "2026-03-10T09:59:00+00:00", "2026-03-08"),
        ("00:30", "06:00", "America/New_York", "2026-03-10T10:00:00+00:00", "2026-03-09"),
        ("03:15", "09:00", "Asia/Tokyo", "2026-03-10T00:00:00+00:00", "2026-03-08"),
        ("10:00", "09:00", "UTC", "2026-03-10T12:00:00+00:00", "2026-03-08"),
        ("09:00", "09:00", "UTC", "2026-03-10T12:00:00+00:00", "2026-03-08"),
        ("02:30", "08:00", "Europe/Berlin", "2026-03-29T06:00:00+00:00", "2026-03-28"),
    ],
)
def test_a_nights_day_is_due_at_the_next_hour_of_delivery_in_the_zone(
    nightly: str, by: str, zone: str, now: str, due: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokyo's night of 10 March is 9 March in UTC, and its day is the one before; on 29 March Berlin has no 02:30."""
    for name, value in {"CIO_NIGHTLY_AT": nightly, "CIO_DELIVERED_BY": by, "CIO_TIME_ZONE": zone}.items():
        monkeypatch.setenv(name, value)
    assert day_due(datetime.fromisoformat(now), load_days_settings()) == due


def test_a_day_is_delivered_whole_by_a_run_that_began_after_it_and_left_nothing() -> None:
    assert not Delivery(DAY, datetime(2025, 1, 1, 23, 59, 59, tzinfo=UTC)).is_whole
    assert Delivery(DAY, datetime(2025, 1, 2, tzinfo=UTC)).is_whole
    assert not Delivery(DAY, datetime(2025, 1, 2, tzinfo=UTC), left=1).is_whole


def test_a_run_that_leaves_customers_or_events_for_another_does_not_count_as_yesterdays_delivery(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    due = datetime(2025, 1, 2, 12, tzinfo=UTC)
    for options, left in (({"hold_recent_events": 24 * 365 * 100}, 6), ({"limit": 1}, 3)):
        deliver(instance, **options)
        check = _yesterday_delivered(instance, due)
        assert not check.passed
        assert (check.description or "").startswith(
            f"{DAY} is delivered only in part: its last run left {left} upserts and events for another one (limit,"
            " hold_recent_events). "
        )
    for complete in ({"limit": 2}, {}):
        deliver(instance, **complete)
        assert _yesterday_delivered(instance, due).passed


@pytest.mark.parametrize(
    ("delivered", "missed"),
    [
        ([], []),
        (["2026-03-01"], []),
        (["2026-03-05", "2026-03-06", "2026-03-09"], ["2026-03-07", "2026-03-08"]),
        (
            ["2025-01-01", "2026-03-09"],
            [str(date(2026, 3, 10) - timedelta(days=back)) for back in range(DAYS_LOOKED_BACK, 1, -1)],
        ),
    ],
)
def test_days_between_delivered_ones_are_missed(instance: dg.DagsterInstance, delivered: list[str], missed: list[str]) -> None:
    for day in delivered:
        materialized(instance, day)
    assert missed_days(instance, datetime(2026, 3, 10, 12, tzinfo=UTC)) == missed


def test_a_day_whose_last_run_left_something_is_missed_until_another_run_delivers_it(instance: dg.DagsterInstance) -> None:
    first, second, third, fourth = (f"2026-03-0{number}" for number in (1, 2, 3, 4))
    now = datetime(2026, 3, 10, 12, tzinfo=UTC)
    for day in (first, second, third, fourth):
        materialized(instance, day, left=0 if day == fourth else 5)
    assert missed_days(instance, now) == [first, second, third]
    materialized(instance, first)
    assert missed_days(instance, now) == [second, third]
    for day in (second, third):
        materialized(instance, day)
    assert missed_days(instance, now) == []


def test_a_skipped_day_is_missed_also_if_all_later_days_were_delivered_only_in_part(instance: dg.DagsterInstance) -> None:
    now = datetime(2026, 3, 10, 12, tzinfo=UTC)
    for number in (1, 2, 3, 5, 6):
        materialized(instance, f"2026-03-0{number}", left=5 if number > 3 else 0)
    assert missed_days(instance, now) == ["2026-03-04", "2026-03-05"]  # yesterday_delivered warns of the last day


def materialized(instance: dg.DagsterInstance, day: str, left: int = 0) -> None:
    metadata = {LEFT_FOR_ANOTHER_RUN: left} if left else {}
    instance.report_runless_asset_event(dg.AssetMaterialization(DELIVERY, partition=day, metadata=metadata))


def test_a_day_that_is_due_and_not_delivered_is_said_once_anything_ever_was(instance: dg.DagsterInstance) -> None:
    now = datetime.now(UTC).replace(hour=12)
    yesterday = str(now.date() - timedelta(days=1))
    assert _yesterday_delivered(instance, now).passed
    materialized(instance, DAY)
    check = _yesterday_delivered(instance, now)
    assert (check.passed, check.severity, check.metadata["days not delivered"].value) == (False, dg.AssetCheckSeverity.WARN, 1)
    assert (check.description or "").startswith(f"{yesterday} is not delivered. Look in Runs whether ")
    materialized(instance, yesterday)
    assert _yesterday_delivered(instance, now).passed
    tomorrow = now + timedelta(days=1)
    materialized(instance, str(now.date()))
    found = _yesterday_delivered(instance, tomorrow)
    assert not found.passed
    assert (found.description or "").startswith(f"{now.date()} is delivered only in part, by a run that began before")


def test_a_run_delivers_when_it_begins(workspace: Workspace, instance: dg.DagsterInstance) -> None:
    before = datetime.now(UTC)
    deliver(instance)
    [run] = instance.get_run_records(limit=1)
    last = last_delivery(instance, DAY)
    assert last is not None
    assert before <= last.began == datetime.fromtimestamp(run.start_time or 0, UTC)
    assert last_delivery(instance, "2025-01-02") is None


def test_the_schedule_of_the_checks_waits_until_anything_was_delivered(tmp_path: Path) -> None:
    schedule = defs.resolve_schedule_def("customerio_checks_daily")
    assert schedule.default_status == dg.DefaultScheduleStatus.RUNNING
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        tick = dg.build_schedule_context(instance, datetime(2026, 3, 10, 9, tzinfo=UTC))
        assert not schedule.evaluate_tick(tick).run_requests
        materialized(instance, DAY)
        assert len(schedule.evaluate_tick(tick).run_requests or []) == 1


def test_customerio_checks_evaluates_each_check_that_needs_no_run_and_sends_nothing(
    workspace: Workspace, instance: dg.DagsterInstance
) -> None:
    for back in (6, 3):
        materialized(instance, str(datetime.now(UTC).date() - timedelta(days=back)))
    result = defs.resolve_job_def("customerio_checks").execute_in_process(instance=instance)
    found = {check.check_name for check in result.get_asset_check_evaluations()}
    assert found == {check.name for one in scheduled_checks.CHECKS_WITHOUT_A_RUN for check in one.check_keys}
    assert not latest(instance, "yesterday_delivered").passed
    missed = latest(instance, "no_day_missed")
    assert (missed.passed, missed.metadata["days missed"].value) == (False, 2)
    assert (missed.description or "").startswith("Not delivered, or only in part: ")
    assert workspace.requests == []
