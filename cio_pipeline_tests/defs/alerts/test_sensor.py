"""The sensor, with a webhook: one alert a failed run, none a retry, one a failed check or late day, and one when it is over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest
from dagster._core.events import StepMaterializationData
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.tags import PARENT_RUN_ID_TAG, ROOT_RUN_ID_TAG
from dagster._core.test_utils import create_run_for_test

from cio_pipeline.customerio.counts import LEFT_FOR_ANOTHER_RUN
from cio_pipeline.definitions import defs
from cio_pipeline.defs.alerts.dagster_events import EVALUATIONS_AT_ONCE
from cio_pipeline.defs.alerts.sensor import Cursor, customerio_alerts
from cio_pipeline.defs.assets.deliver import customerio_delivery
from cio_pipeline.defs.checks.deliver import nothing_refused
from cio_pipeline.defs.delivered_days import is_delivered
from cio_pipeline.defs.jobs.backfill import STARTED_BY
from cio_pipeline.defs.partitions import PARTITION, RANGE_END, RANGE_START
from cio_pipeline_tests.alerts.receivers import Webhook, webhook

NOW = datetime(2025, 3, 3, 12, tzinfo=UTC)
YESTERDAY = "2025-03-02"
[CHECK] = nothing_refused.check_keys
SYNC = "customerio_sync"
REPOSITORY = defs.get_repository_def()


class Daemon:
    """Ticks as Dagster's daemon makes them: each gets the cursor that the one before it has left."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance = instance
        self.cursor: str | None = None

    def tick(self) -> str:
        """One tick; gives what the daemon logs of it."""
        context = dg.build_sensor_context(self.instance, cursor=self.cursor, repository_def=REPOSITORY)
        said = customerio_alerts(context)
        assert isinstance(said, dg.SkipReason)
        self.cursor = context.cursor
        return said.skip_message or ""


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Webhook]:
    monkeypatch.setattr("cio_pipeline.defs.alerts.dagster_events.now", lambda: NOW)
    with webhook() as kept:
        monkeypatch.setenv("CIO_ALERT_WEBHOOK_URL", kept.url)
        yield kept


@pytest.fixture
def daemon(hook: Webhook, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """After the first tick, with yesterday delivered: all is well."""
    with dg.DagsterInstance.ephemeral() as instance:
        deliver(instance, YESTERDAY)
        made = Daemon(instance)
        made.tick()
        assert hook.texts == []
        yield made


def deliver(instance: dg.DagsterInstance, day: str, left: int = 0) -> None:
    metadata = {LEFT_FOR_ANOTHER_RUN: left} if left else {}
    instance.report_runless_asset_event(dg.AssetMaterialization(customerio_delivery.key, partition=day, metadata=metadata))


def evaluate(instance: dg.DagsterInstance, *, passed: bool, description: str = "12 refused.") -> None:
    instance.report_runless_asset_event(
        dg.AssetCheckEvaluation(CHECK.asset_key, CHECK.name, passed, {}, description=description)
    )


def fail(instance: dg.DagsterInstance, job: str = SYNC, message: str | None = "The reason.", **tags: str) -> str:
    run = create_run_for_test(instance, job_name=job, tags={name.replace("__", "/"): value for name, value in tags.items()})
    instance.report_run_failed(run, message)
    return run.run_id


def succeed(instance: dg.DagsterInstance, job: str = SYNC, **tags: str) -> None:
    run = create_run_for_test(instance, job_name=job, tags={name.replace("__", "/"): value for name, value in tags.items()})
    instance.report_dagster_event(
        dg.DagsterEvent(dg.DagsterEventType.RUN_SUCCESS.value, job, message="done"), run_id=run.run_id
    )


def test_a_failed_run_is_told_once_with_its_days_and_link_and_once_that_they_are_delivered(
    daemon: Daemon, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_DAGSTER_URL", "http://dagster")
    run = fail(daemon.instance, **{RANGE_START: "2025-03-01", RANGE_END: YESTERDAY})
    assert daemon.tick() == "No alert is waiting to be sent."
    daemon.tick()
    link = f"<http://dagster/runs/{run}|Open in Dagster>"
    assert hook.texts == [f"The run of 2025-03-01 to {YESTERDAY} failed: The reason. {link}"]
    deliver(daemon.instance, "2025-03-01")
    daemon.tick()
    assert len(hook.texts) == 1, "yesterday was delivered before this run, but not since"
    deliver(daemon.instance, YESTERDAY)
    daemon.tick()
    assert hook.texts[1:] == [f"Resolved: all of 2025-03-01 to {YESTERDAY} is delivered now; a run had failed. {link}"]


def test_a_run_that_leaves_something_of_the_day_for_another_ends_no_alert(daemon: Daemon, hook: Webhook) -> None:
    fail(daemon.instance, **{PARTITION: YESTERDAY})
    deliver(daemon.instance, YESTERDAY, left=5)
    daemon.tick()
    deliver(daemon.instance, YESTERDAY, left=5)
    daemon.tick()
    assert hook.texts == [f"The run of {YESTERDAY} failed: The reason."]
    deliver(daemon.instance, YESTERDAY)
    daemon.tick()
    assert hook.texts[1:] == [f"Resolved: all of {YESTERDAY} is delivered now; a run had failed."]


def test_yesterday_of_which_a_run_has_left_something_is_late(hook: Webhook) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        deliver(instance, YESTERDAY, left=5)
        daemon = Daemon(instance)
        daemon.tick()
        [text] = hook.texts
        assert text.startswith(f"{YESTERDAY} was not delivered by ")
        deliver(instance, YESTERDAY)
        daemon.tick()
        assert hook.texts[1:] == [f"Resolved: {YESTERDAY} is delivered now."]


def test_a_run_that_dagster_runs_again_is_not_told_but_the_last_of_them_is(daemon: Daemon, hook: Webhook) -> None:
    first = fail(daemon.instance, dagster__will_retry="true", **{PARTITION: YESTERDAY})
    daemon.tick()
    daemon.instance.add_run_tags(first, {"dagster/auto_retry_run_id": "another"})
    daemon.tick()
    assert hook.texts == []
    fail(daemon.instance, dagster__will_retry="false", **{PARTITION: YESTERDAY})
    daemon.tick()
    assert hook.texts == [f"The run of {YESTERDAY} failed: The reason."]


def test_a_retry_that_dagster_gives_up_is_told(daemon: Daemon, hook: Webhook) -> None:
    run = fail(daemon.instance, dagster__will_retry="true")
    daemon.tick()
    daemon.instance.add_run_tags(run, {"dagster/will_retry": "false"})
    daemon.tick()
    daemon.tick()
    assert hook.texts == ["A run of customerio_sync failed: The reason."]


def test_a_failure_of_which_dagster_has_not_noted_whether_it_runs_again_waits(
    daemon: Daemon, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stores the event first and the tag next."""
    run = fail(daemon.instance)
    monkeypatch.setattr(dg.DagsterInstance, "run_retries_enabled", True)
    daemon.tick()
    assert hook.texts == []
    daemon.instance.add_run_tags(run, {"dagster/will_retry": "false"})
    daemon.tick()
    assert hook.texts == ["A run of customerio_sync failed: The reason."]


def test_a_retry_that_dagster_has_not_started_after_ten_minutes_is_told(
    daemon: Daemon, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(daemon.instance, dagster__will_retry="true")
    for minutes, told in ((9, 0), (11, 1)):
        later = datetime.now(UTC) + timedelta(minutes=minutes)
        monkeypatch.setattr("cio_pipeline.defs.alerts.dagster_events.now", lambda later=later: later)
        daemon.tick()
        assert hook.texts.count("A run of customerio_sync failed: The reason.") == told


def test_a_failed_run_of_each_job_that_reads_or_sends_is_told_and_no_other(daemon: Daemon, hook: Webhook) -> None:
    told = [SYNC, "customerio_backfill", "customerio_checks", "customerio_hourly", "redeliver_refused"]
    for job in (*told, "customerio_dry_run", "explain_person"):
        fail(daemon.instance, job=job)
    daemon.tick()
    assert hook.texts == [f"A run of {job} failed: The reason." for job in told]


def test_a_run_of_another_team_is_not_told(daemon: Daemon, hook: Webhook) -> None:
    fail(daemon.instance, job="their_job")
    daemon.tick()
    assert hook.texts == []


def test_a_run_that_dagster_has_ended_without_a_reason_is_one_whose_process_is_gone(daemon: Daemon, hook: Webhook) -> None:
    fail(daemon.instance, message=None)
    daemon.tick()
    daemon.tick()
    [text] = hook.texts
    assert "failed: The process of this run is gone: it was killed" in text


def test_a_failed_check_is_told_once_and_that_it_passes_again_once(daemon: Daemon, hook: Webhook) -> None:
    for passed in (False, False, True, True):
        evaluate(daemon.instance, passed=passed, description="12 refused, of jane@example.com.")
        daemon.tick()
        daemon.tick()
    assert hook.texts == [
        "The check nothing_refused of customerio_delivery failed: 12 refused, of j***@e***.com.",
        "Resolved: the check nothing_refused of customerio_delivery passes again.",
    ]


def test_a_late_day_is_not_told_by_its_check_as_well(daemon: Daemon, hook: Webhook) -> None:
    late = dg.AssetCheckEvaluation(customerio_delivery.key, "yesterday_delivered", passed=False, metadata={})
    daemon.instance.report_runless_asset_event(late)
    daemon.tick()
    assert hook.texts == []


def test_a_check_that_fails_and_passes_between_two_ticks_is_told(daemon: Daemon, hook: Webhook) -> None:
    evaluate(daemon.instance, passed=False)
    evaluate(daemon.instance, passed=True)
    daemon.tick()
    assert [text.split()[0] for text in hook.texts] == ["The", "Resolved:"]


def test_a_check_that_failed_long_before_the_next_tick_is_told(daemon: Daemon, hook: Webhook) -> None:
    """The daemon was down meanwhile, or many runs have ended within a minute."""
    evaluate(daemon.instance, passed=False, description="The first of all.")
    for _ in range(2 * EVALUATIONS_AT_ONCE + 1):
        evaluate(daemon.instance, passed=True)
    daemon.tick()
    daemon.tick()
    assert [text.split(": ")[-1] for text in hook.texts] == [
        "The first of all.",
        "the check nothing_refused of customerio_delivery passes again.",
    ]


def test_yesterday_that_is_not_delivered_is_told_from_the_hour_on_without_any_run(
    hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_DELIVERED_BY", "12:30")
    with dg.DagsterInstance.ephemeral() as instance:
        daemon = Daemon(instance)
        daemon.tick()
        assert hook.texts == []
        monkeypatch.setattr("cio_pipeline.defs.alerts.dagster_events.now", lambda: NOW.replace(minute=30))
        daemon.tick()
        daemon.tick()
        why = "no run of it has been started since: is the schedule customerio_daily on, and can it start runs?"
        assert hook.texts == [f"{YESTERDAY} was not delivered by 12:30 UTC (CIO_DELIVERED_BY): {why}"]
        deliver(instance, YESTERDAY)
        daemon.tick()
        daemon.tick()
        assert hook.texts[1:] == [f"Resolved: {YESTERDAY} is delivered now."]


@pytest.mark.parametrize(
    ("job", "tags", "why"),
    [
        (SYNC, {PARTITION: YESTERDAY}, "its last run failed."),
        ("__ASSET_JOB", {RANGE_START: "2025-03-01", RANGE_END: YESTERDAY}, "its last run failed."),
        (SYNC, {PARTITION: "2025-03-01"}, "no run of it has been started since:"),
    ],
)
def test_a_late_day_says_what_became_of_its_run(hook: Webhook, job: str, tags: dict[str, str], why: str) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = create_run_for_test(instance, job_name=job, tags=tags, asset_selection=frozenset([customerio_delivery.key]))
        instance.report_run_failed(run, "The reason.")
        Daemon(instance).tick()
    [text] = hook.texts
    assert f"(CIO_DELIVERED_BY): {why}" in text


def test_the_alert_of_a_late_day_goes_by_what_the_check_goes_by(hook: Webhook) -> None:
    """A run that began before the day was over has delivered but a part of it, whenever it ended."""
    with dg.DagsterInstance.ephemeral() as instance:
        run = create_run_for_test(instance, job_name=SYNC)
        started = dg.DagsterEvent(dg.DagsterEventType.RUN_START.value, SYNC, message="")
        early = datetime(2025, 3, 2, 23, 59, tzinfo=UTC).timestamp()
        entry = EventLogEntry(None, "info", "", run.run_id, early, job_name=SYNC, dagster_event=started)  # type: ignore[no-untyped-call]
        instance.handle_new_event(entry)
        made = dg.AssetMaterialization(customerio_delivery.key, partition=YESTERDAY)
        data = StepMaterializationData(made)
        event = dg.DagsterEvent(dg.DagsterEventType.ASSET_MATERIALIZATION.value, SYNC, event_specific_data=data)
        instance.report_dagster_event(event, run_id=run.run_id)
        assert not is_delivered(instance, YESTERDAY)
        daemon = Daemon(instance)
        daemon.tick()
        assert [text.split(" (")[0] for text in hook.texts] == [f"{YESTERDAY} was not delivered by 09:00 UTC"]
        instance.report_dagster_event(event, run_id=run.run_id)
        daemon.tick()
        assert len(hook.texts) == 1
        deliver(instance, YESTERDAY)
        assert is_delivered(instance, YESTERDAY)
        daemon.tick()
        assert hook.texts[1:] == [f"Resolved: {YESTERDAY} is delivered now."]


def test_hourly_runs_that_fail_one_after_another_are_told_once_and_a_skipped_one_is_no_end(
    daemon: Daemon, hook: Webhook
) -> None:
    for skipped in (False, True):
        fail(daemon.instance, job="customerio_hourly")
        daemon.tick()
        if skipped:
            succeed(daemon.instance, job="customerio_hourly", skipped="Another run is delivering.")
            daemon.tick()
    fail(daemon.instance, job="customerio_hourly")
    daemon.tick()
    assert hook.texts == ["A run of customerio_hourly failed: The reason."]
    succeed(daemon.instance, job="customerio_hourly")
    daemon.tick()
    assert hook.texts[1:] == ["Resolved: customerio_hourly has succeeded; a run had failed."]
    fail(daemon.instance, job="customerio_hourly")
    daemon.tick()
    assert len(hook.texts) == 3


def test_a_backfill_that_fails_is_told_once_with_its_days_and_not_each_of_its_runs(daemon: Daemon, hook: Webhook) -> None:
    for _ in range(3):
        fail(daemon.instance, message="Some.", cio_pipeline__started_by="1")
        daemon.tick()
    assert hook.texts == []
    fail(daemon.instance, job="customerio_backfill", message="2 of 6 days failed (2025-01-02, 2025-01-05).")
    daemon.tick()
    daemon.tick()
    assert hook.texts == ["A run of customerio_backfill failed: 2 of 6 days failed (2025-01-02, 2025-01-05)."]


def test_a_run_of_a_backfill_that_somebody_runs_again_and_that_fails_is_told(daemon: Daemon, hook: Webhook) -> None:
    first = fail(daemon.instance, cio_pipeline__started_by="1")
    tags = {STARTED_BY: "1", PARENT_RUN_ID_TAG: first, ROOT_RUN_ID_TAG: first}
    again = create_run_for_test(daemon.instance, job_name=SYNC, tags=tags, parent_run_id=first, root_run_id=first)
    daemon.instance.report_run_failed(again, "The reason.")
    daemon.tick()
    daemon.tick()
    assert [text.partition(":")[2].strip() for text in hook.texts] == ["The reason."]


def test_days_that_went_by_while_the_daemon_was_down_are_told(
    daemon: Daemon, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.defs.alerts.dagster_events.now", lambda: NOW.replace(day=6))
    daemon.tick()
    assert [text.split()[0] for text in hook.texts] == ["2025-03-03", "2025-03-04", "2025-03-05"]


def test_what_was_before_the_first_tick_is_not_told(hook: Webhook) -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        fail(instance)
        deliver(instance, YESTERDAY)
        evaluate(instance, passed=False)
        Daemon(instance).tick()
    assert hook.texts == []


def test_what_a_webhook_does_not_take_is_sent_at_the_next_tick_and_the_rest_not_twice(
    daemon: Daemon, hook: Webhook, caplog: pytest.LogCaptureFixture
) -> None:
    hook.status = 404
    fail(daemon.instance, **{PARTITION: YESTERDAY})
    why = "1 waiting to be sent: CIO_ALERT_WEBHOOK_URL (127.0.0.1) gave no usable answer in 1 try: it answered 404."
    assert daemon.tick() == why
    assert f"{why} It will be tried again in a minute." in caplog.messages
    evaluate(daemon.instance, passed=False)
    hook.status = 200
    daemon.tick()
    daemon.tick()
    assert [text.split(":")[0] for text in hook.texts] == [
        f"The run of {YESTERDAY} failed",
        "The check nothing_refused of customerio_delivery failed",
    ]


def test_a_place_that_is_away_keeps_nothing_from_the_other_and_the_cursor_short(
    daemon: Daemon, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIO_SMTP_URL", "smtp://127.0.0.1:1")
    monkeypatch.setenv("CIO_ALERT_EMAIL", "a@example.com")
    daemon.tick()
    for _ in range(60):
        fail(daemon.instance, message="x" * 5000)
    for _ in range(4):
        daemon.tick()
    assert len(hook.got) == 60
    assert len(Cursor.model_validate_json(daemon.cursor or "").targets["email"].unsent) == 20
    assert len(daemon.cursor or "") < 500_000


def test_a_heartbeat_follows_each_run_that_the_schedule_has_started_and_no_other(
    daemon: Daemon, hook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIO_ALERT_WEBHOOK_URL")
    monkeypatch.setenv("CIO_HEARTBEAT_URL", hook.url)
    daemon.tick()
    succeed(daemon.instance)
    daemon.tick()
    assert hook.got == []
    hook.status = 500
    succeed(daemon.instance, dagster__schedule_name="customerio_daily")
    assert daemon.tick() == "CIO_HEARTBEAT_URL (127.0.0.1) gave no usable answer in 1 try: it answered 500."
    hook.status = 200
    daemon.tick()
    daemon.tick()
    assert hook.got == [None]


def test_a_cursor_that_cannot_be_read_begins_anew(daemon: Daemon, hook: Webhook) -> None:
    daemon.cursor = '{"targets": 1}'
    daemon.tick()
    assert set(json.loads(daemon.cursor)["targets"]) == {"webhook"}
    assert hook.texts == []


def test_the_sensor_is_on_where_an_alert_setting_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert customerio_alerts.default_status == dg.DefaultSensorStatus.STOPPED
    assert (customerio_alerts.description or "").startswith("Sends alerts to CIO_ALERT_WEBHOOK_URL")
    with dg.DagsterInstance.ephemeral() as instance:
        assert Daemon(instance).tick().startswith("No alerts are sent: CIO_ALERT_WEBHOOK_URL,")
