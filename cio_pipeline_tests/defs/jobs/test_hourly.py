"""The job customerio_hourly: what it sends of a day that is not over, what it leaves to the nightly run, and when it sends
nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import DELIVERY
from cio_pipeline.defs.jobs import hourly
from cio_pipeline.defs.reading import read_day, read_history
from cio_pipeline.defs.resources import PostHogResource, StoreResource
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.exports import export
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.settings.load import load_settings
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.defs.jobs.test_dry_run import files, look
from cio_pipeline_tests.defs.test_days_of_a_run import event, execute
from cio_pipeline_tests.posthog.exports.stored import stored

DAY = "2025-01-02"
"""The open day. Dagster's own clock is past it, so the nightly run can be asked for at once."""

BEFORE = "2025-01-01"
NOON = datetime(2025, 1, 2, 12, 3, tzinfo=UTC)


class Services:
    """A PostHog and a Customer.io, and a clock."""

    def __init__(self, source: posthog.PostHog, workspace: customerio.CustomerioServer, data: Path) -> None:
        self.project, self.workspace, self.data = source.project, workspace, data

    def happens(self, *events: dict[str, Any]) -> None:
        """PostHog takes these events in."""
        self.project.add(events)

    def totals(self) -> dict[str, int]:
        """What Customer.io holds."""
        return self.workspace.workspace.totals()


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Services]:
    monkeypatch.setattr("cio_pipeline.http.retry.BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(hourly, "now", lambda: NOON)
    with ExitStack() as stack:
        source, workspace = stack.enter_context(posthog.serve(iter(()))), stack.enter_context(customerio.serve())
        for name, value in Sandbox(source.url, workspace.url).environment(tmp_path / "data", date(2025, 1, 1)).items():
            monkeypatch.setenv(name, value)
        yield Services(source, workspace, tmp_path / "data")


def visit(
    number: int, who: str, time: str, properties: dict[str, Any] | None = None, day: str = DAY, name: str = "visit"
) -> dict[str, Any]:
    return event(number, name, who, f"{day}T{time}:00Z", **(properties or {}))


def run(instance: dg.DagsterInstance, **config: Any) -> dict[str, Any]:
    """Runs the job; gives what it tells on the asset's page, and its tags."""
    result = defs.resolve_job_def("customerio_hourly").execute_in_process(
        instance=instance, run_config={"ops": {"deliver_so_far": {"config": config}}}
    )
    assert result.success
    seen = [one.asset_observation_data.asset_observation for one in result.all_events if one.is_asset_observation]
    told = {name: value.value for one in seen for name, value in one.metadata.items()}
    assert [(one.asset_key, one.partition) for one in seen] in ([], [(DELIVERY, DAY)])
    found = instance.get_run_by_id(result.run_id)
    assert found is not None
    return {**told, "tags": found.tags}


def nightly(instance: dg.DagsterInstance, day: str) -> None:
    execute(instance, [day])


def test_it_sends_what_the_day_has_so_far_and_the_nightly_run_the_rest(
    services: Services, instance: dg.DagsterInstance
) -> None:
    services.happens(visit(1, "jane", "10:00", {"$set": {"plan": "free"}}), visit(2, "jane", "11:59"), visit(3, "joe", "13:00"))
    learned(BEFORE)
    told = run(instance)
    assert services.totals() == {"people": 1, "events": 1}, "the last five minutes are left to the next run"
    assert told["so far"].startswith("Until 11:58 UTC. The day is open")
    assert told["tags"]["days"] == f"{DAY} until 11:58 UTC (open)"
    assert (told["events so far"], told["delivered in all"], told["new customers in all"]) == (1, 1, 1)
    assert (told["queries to PostHog"], told["queries that PostHog allows an hour"]) == (2, 2400)
    services.happens(visit(4, "jane", "09:00", {"$set": {"plan": "older"}}))
    assert run(instance)["delivered in all"] == 2
    nightly(instance, DAY)
    assert services.totals() == {"people": 2, "events": 4}
    jane = services.workspace.workspace.person("jane")
    assert jane is not None
    assert jane.values["plan"] == "free"


def test_an_open_day_is_no_partition_that_anything_takes_for_complete(services: Services, instance: dg.DagsterInstance) -> None:
    services.happens(visit(1, "jane", "10:00"), visit(2, "joe", "10:00", day=BEFORE))
    nightly(instance, BEFORE)
    nodes = [node.key for node in defs.resolve_asset_graph().asset_nodes]
    before = ({key: instance.get_materialized_partitions(key) for key in nodes}, files(services.data / "posthog_events"))
    facts = services.data / "customers"
    kept = files(facts)
    assert run(instance)["delivered in all"] == 1
    assert (
        {key: instance.get_materialized_partitions(key) for key in nodes},
        files(services.data / "posthog_events"),
    ) == before
    assert files(facts) == kept
    assert len(instance.fetch_observations(DELIVERY, limit=9).records) == 1


@pytest.mark.parametrize(
    ("settings", "waiting"),
    [
        ({"CIO_IDENTIFY_BY_EMAIL": "Yes"}, 1),
        ({"CIO_ANONYMOUS_USERS": "identified", "CIO_STITCH_ANONYMOUS_DAYS": "2"}, 2),
    ],
    ids=["by email", "stitched"],
)
def test_what_later_events_may_give_to_another_customer_waits_and_is_counted(
    services: Services,
    instance: dg.DagsterInstance,
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    waiting: int,
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    services.happens(
        visit(1, "anon", "09:00", day=BEFORE),
        visit(2, "anon", "09:00"),
        visit(3, "jane", "10:00", {"$anon_distinct_id": "anon", "$set": {"email": "jane@example.com"}}, name="$identify"),
    )
    learned(BEFORE)
    told = run(instance)
    assert services.totals()["events"] == 1
    assert told["events that wait for the whole day"] == waiting
    assert told["tags"].get("skipped") is None
    nightly(instance, DAY)
    assert services.totals()["events"] == 1 + waiting


def test_the_last_five_minutes_of_a_batch_export_wait_too_and_the_nightly_run_delivers_the_whole_day(
    services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The email of two seconds before an event lands after it, in the export's next run."""
    folder, hour = str(tmp_path / "export"), timedelta(hours=1)
    for name, value in {
        "CIO_EVENT_SOURCE": "batch_export",
        "CIO_BATCH_EXPORT_URL": folder,
        "CIO_IDENTIFY_BY_EMAIL": "Yes",
    }.items():
        monkeypatch.setenv(name, value)

    def exported(number: int, at: str, landed: str | None = None, **given: str) -> dict[str, Any]:
        return stored(number, at, landed, distinct_id="jane", properties={"$set": given})

    export(
        [
            exported(1, f"{BEFORE}T00:30:00Z"),
            exported(2, f"{BEFORE}T23:30:00Z"),
            exported(3, f"{DAY}T00:30:00Z", email="old@example.com"),
            exported(4, f"{DAY}T11:59:59Z"),
        ],
        folder,
        hour,
    )
    learned(BEFORE)
    monkeypatch.setattr(hourly, "now", lambda: NOON + hour / 2)
    assert run(instance)["so far"].startswith("Until 11:55 UTC.")
    assert services.totals()["events"] == 1
    renamed = exported(5, f"{DAY}T11:59:57Z", f"{DAY}T12:00:01Z", email="new@example.com")
    export([renamed, exported(6, f"{DAY}T23:30:00Z")], folder, hour)
    nightly(instance, DAY)
    people = [services.workspace.workspace.person(f"{name}@example.com") for name in ("old", "new")]
    assert [person and len(person.events) for person in people] == [1, 3]


def test_a_batch_export_that_reaches_to_the_days_first_minutes_has_nothing_to_send(
    services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CIO_EVENT_SOURCE", "batch_export")
    monkeypatch.setenv("CIO_BATCH_EXPORT_URL", str(tmp_path / "export"))
    times = (f"{BEFORE}T00:01:00Z", f"{BEFORE}T23:58:00Z", f"{DAY}T00:01:00Z")
    export((stored(number, at) for number, at in enumerate(times)), str(tmp_path / "export"), hourly.SETTLED)
    learned(BEFORE)
    assert skipped(instance) == f"{DAY} has only just begun: nothing was sent."


def learned(*days: str) -> None:
    """What the nightly runs of these days leave behind for the day after them."""
    context = dg.build_init_resource_context()
    source = PostHogResource().create_resource(context)
    with StoreResource().yield_for_execution(context) as store:
        read_history(source, store)
        for day in days:
            read_day(day, source, store)
            store.learn(day)


def skipped(instance: dg.DagsterInstance) -> str:
    told = run(instance)
    assert "so far" not in told
    return str(told["tags"]["skipped"])


def test_it_sends_nothing_until_what_the_day_needs_is_known(
    services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.happens(visit(1, "jane", "10:00", name="$identify"))
    assert skipped(instance) == "identity_history was never read, which a run of customerio_sync does: nothing was sent."
    monkeypatch.setenv("CIO_ANONYMOUS_USERS", "identified")
    learned(BEFORE)
    monkeypatch.setattr(hourly, "now", lambda: NOON + timedelta(days=1))
    assert skipped(instance).startswith(f"1 earlier day was never learned ({DAY})")
    monkeypatch.setattr(hourly, "now", lambda: datetime(2025, 1, 2, 0, 5, tzinfo=UTC))
    assert skipped(instance) == f"{DAY} has only just begun: nothing was sent."
    monkeypatch.setattr(hourly, "now", lambda: NOON)
    assert run(instance)["delivered in all"] == 1


def test_it_leaves_a_delivery_that_is_at_work_alone(
    services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    services.happens(visit(1, "jane", "10:00"))
    learned(BEFORE)
    queries = services.project.statuses.total()
    ledger = Ledger(f"sqlite:///{services.data}/ledger.db")
    with ledger.hold_delivery_lock(lambda: None):
        assert skipped(instance) == "Another run is delivering with this ledger: nothing was sent, the next run will send it."
    assert services.project.statuses.total() == queries + 2, "those of the key's check"
    derive = hourly.derive_so_far

    def while_another_begins(*arguments: Any) -> Any:
        found = derive(*arguments)
        stack.enter_context(ledger.hold_delivery_lock(lambda: None))
        return found

    monkeypatch.setattr(hourly, "derive_so_far", while_another_begins)
    with ExitStack() as stack:
        assert skipped(instance).startswith("Another run is delivering")
    assert services.totals()["events"] == 0


def test_a_part_that_was_read_before_the_whole_day_is_not_sent_after_it(
    services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two values of one second, the one that is sent last stays (R17)."""
    services.happens({**visit(1, "jane", "10:00", {"$set": {"plan": "first"}}), "timestamp": f"{DAY}T10:00:00.100Z"})
    learned(BEFORE)
    derive = hourly.derive_so_far

    def before_the_nightly_run(*arguments: Any) -> Any:
        found = derive(*arguments)
        services.happens({**visit(2, "jane", "10:00", {"$set": {"plan": "last"}}), "timestamp": f"{DAY}T10:00:00.200Z"})
        nightly(instance, DAY)
        return found

    monkeypatch.setattr(hourly, "derive_so_far", before_the_nightly_run)
    assert skipped(instance) == f"{DAY} is over, and another run delivers the whole of it: nothing was sent."
    jane = services.workspace.workspace.person("jane")
    assert jane is not None
    assert jane.values["plan"] == "last"


def test_the_limit_on_new_customers_holds_for_the_runs_of_a_day_together(
    services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_MAX_NEW_CUSTOMERS", "2")
    services.happens(visit(1, "a", "09:00"), visit(2, "b", "09:00"))
    learned(BEFORE)
    run(instance)
    services.happens(visit(3, "c", "10:00"))
    with pytest.raises(dg.Failure) as stopped:
        run(instance)
    assert "make 3 new customers, with the 2 of earlier runs of the day, more than CIO_MAX_NEW_CUSTOMERS" in str(
        stopped.value.description
    )
    run(instance, max_new_customers=3)
    assert services.totals()["people"] == 3


def test_a_lost_ledger_stops_it(services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.plan.CAMPAIGN_WINDOW_SECONDS", 10**9)
    monkeypatch.setattr("cio_pipeline.customerio.forecast.CAMPAIGN_WINDOW_SECONDS", 10**9)
    services.happens(visit(1, "jane", "10:00"), visit(2, "joe", "10:00", day=BEFORE))
    nightly(instance, BEFORE)
    run(instance)
    with sqlite3.connect(services.data / "ledger.db") as connection:
        connection.execute("DELETE FROM deliveries")
    with pytest.raises(dg.Failure, match=r"The ledger .* lacks deliveries"):
        run(instance)
    assert services.totals()["events"] == 2


def test_it_delivers_no_more_than_the_suppression_list_allows(
    services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also by what is learned only from the open day (R21)."""
    (tmp_path / "suppressed.txt").write_text("jane@example.com\n")
    monkeypatch.setenv("CIO_SUPPRESSED_FILE", str(tmp_path / "suppressed.txt"))
    services.happens(
        visit(1, "jane", "10:00", {"$set": {"email": "jane@example.com"}}),
        visit(2, "jane", "11:00", {"$set": {"email": "new@example.com"}}),
        visit(3, "joe", "10:00"),
    )
    learned(BEFORE)
    run(instance)
    assert services.workspace.workspace.person("jane") is None
    assert services.totals()["events"] == 1


def tick(instance: dg.DagsterInstance) -> tuple[int, str]:
    """How many runs a tick starts, and why none."""
    schedule = defs.resolve_schedule_def("customerio_hourly_schedule")
    found = schedule.evaluate_tick(dg.build_schedule_context(instance, scheduled_execution_time=datetime.now(UTC)))
    return len(found.run_requests or []), found.skip_message or ""


def test_the_schedule_is_off_and_starts_no_run_beside_an_unfinished_one(tmp_path: Path) -> None:
    schedule = defs.resolve_schedule_def("customerio_hourly_schedule")
    assert (schedule.cron_schedule, schedule.default_status) == ("30 * * * *", dg.DefaultScheduleStatus.STOPPED)
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        create_run_for_test(instance, job_name="customerio_sync", status=dg.DagsterRunStatus.STARTED)
        run_id = create_run_for_test(instance, job_name="customerio_hourly").run_id
        assert dg.DagsterRunStatus.QUEUED in hourly.UNFINISHED
        for happened in (None, "PIPELINE_STARTING", "PIPELINE_START", "PIPELINE_CANCELING"):
            if happened is not None:
                instance.report_dagster_event(dg.DagsterEvent(happened, "customerio_hourly", message=""), run_id=run_id)
            assert tick(instance) == (0, f"The run {run_id} of customerio_hourly has not finished, so no other is started.")
        for job_end in ("PIPELINE_SUCCESS", "PIPELINE_FAILURE", "PIPELINE_CANCELED"):
            instance.report_dagster_event(dg.DagsterEvent(job_end, "customerio_hourly", message=""), run_id=run_id)
            assert tick(instance) == (1, "")


def test_an_event_that_was_stitched_stays_whose_it_was_when_an_older_identify_comes_late(
    services: Services, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_STITCH_ANONYMOUS_DAYS", "7")
    monkeypatch.setenv("CIO_ANONYMOUS_USERS", "identified")
    first, second, third = "2025-01-01", "2025-01-02", "2025-01-03"
    names_anon = {"$anon_distinct_id": "anon"}
    services.happens(visit(1, "anon", "10:00", day=first), visit(2, "u1", "10:00", names_anon, day=third, name="$identify"))
    for day in (first, second, third):
        nightly(instance, day)
    services.happens(visit(3, "u2", "09:00", names_anon, day=second, name="$identify"))
    shown = look(instance, [second])
    for day in (second, third):
        nightly(instance, day)
    ledger = Ledger(load_settings().ledger_url)
    assert [len(ledger.delivered(day)) for day in (first, second, third)] == [0, 1, 2]
    assert (shown["events to send"], services.totals()["events"]) == (1, 3)
    person = services.workspace.workspace.person("u2")
    assert person is not None
    assert [activity.name for activity in person.activities] == ["$identify"]
