"""Runs of several days: a receipt a day, what stops a run before its first request, and what is held for another run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.counts import LEFT_FOR_ANOTHER_RUN
from cio_pipeline.definitions import defs
from cio_pipeline.defs.asset_keys import DELIVERY, asset_key
from cio_pipeline.defs.pages.receipts import (
    CAMPAIGN_EVENTS_IN_ALL,
    DAY_CHART,
    DELIVERED,
    MEANING,
    NEW_CUSTOMERS_IN_ALL,
    OPEN_REFUSALS,
)
from cio_pipeline.defs.partitions import DAYS_IN_ALL, RANGE_END, RANGE_START
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.customerio.test_refusals import INACTIVE, answer_where
from cio_pipeline_tests.defs.assets.test_deliver import SINK, refusing
from cio_pipeline_tests.jobs import without_checks
from cio_pipeline_tests.receipts import values

DAYS = ["2025-01-01", "2025-01-02", "2025-01-03"]
TODAY = datetime.now(UTC).date()
RECENT = [str(TODAY - timedelta(days=back)) for back in (3, 2, 1)]
PLOTTED = (NEW_CUSTOMERS_IN_ALL, CAMPAIGN_EVENTS_IN_ALL, DELIVERED, OPEN_REFUSALS)
ONLY_PERSONLESS = "new customers with nothing but personless events"
Workspace = customerio.CustomerioServer
Start = Callable[..., Workspace]


def event(number: int, name: str, distinct_id: str, at: str, **properties: Any) -> dict[str, Any]:
    uuid = f"00000000-0000-4000-8000-{number:012}"
    return {"uuid": uuid, "event": name, "distinct_id": distinct_id, "timestamp": at, "properties": properties}


def stream(days: list[str]) -> list[dict[str, Any]]:
    """On each of three days: an event of jane, and one of somebody new."""
    return [
        event(2 * number + which, "visit", who, f"{day}T10:00:00Z", **{"$set": {"plan": str(number)}})
        for number, day in enumerate(days)
        for which, who in enumerate(["jane", f"new-{number}"])
    ]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Start]:
    """Starts a Customer.io beside a PostHog with the events given, and settings that name both."""
    monkeypatch.setattr("cio_pipeline.defs.delivery.run_delivery.RETRY_SECONDS", 0)
    monkeypatch.setattr("cio_pipeline.http.retry.BACKOFF_SECONDS", 0.001)
    with customerio.serve() as server:

        @contextmanager
        def serving(events: list[dict[str, Any]]) -> Iterator[Workspace]:
            with posthog.serve(iter(events)) as source:
                for name, value in Sandbox(source.url, server.url).environment(tmp_path / "data", date(2025, 1, 1)).items():
                    monkeypatch.setenv(name, value)
                yield server

        opened: list[AbstractContextManager[Workspace]] = []

        def begin(events: list[dict[str, Any]], **settings: str) -> Workspace:
            opened.append(serving(events))
            found = opened[-1].__enter__()
            for name, value in settings.items():
                monkeypatch.setenv(name, value)
            return found

        yield begin
        for one in opened:
            one.__exit__(None, None, None)


def execute(
    instance: dg.DagsterInstance, days: list[str], tags: dict[str, str] | None = None, **config: Any
) -> dg.ExecuteInProcessResult:
    return _execute(without_checks(), instance, days, tags, **config)


def _execute(
    job: dg.JobDefinition, instance: dg.DagsterInstance, days: list[str], tags: dict[str, str] | None = None, **config: Any
) -> dg.ExecuteInProcessResult:
    return job.execute_in_process(
        instance=instance,
        tags={RANGE_START: days[0], RANGE_END: days[-1], **(tags or {})},
        run_config={"ops": {"cio__customerio_delivery": {"ops": {"upsert_to_customerio": {"config": config}}}}},
    )


def run(instance: dg.DagsterInstance, days: list[str], **config: Any) -> dict[str, dict[str, Any]]:
    """Runs the days; gives each day's receipt."""
    result = execute(instance, days, **config)
    receipts = result.asset_materializations_for_node(SINK)
    return {str(one.partition): values(one.metadata) for one in receipts}


def stops(instance: dg.DagsterInstance, days: list[str], tags: dict[str, str] | None = None, **config: Any) -> str:
    """Runs the days, which must fail; gives the sentence."""
    with pytest.raises(dg.Failure) as failure:
        execute(instance, days, tags, **config)
    assert isinstance(failure.value.__context__, NotDelivered)
    return str(failure.value.description)


def sent(workspace: Workspace) -> dict[str, int]:
    return workspace.workspace.totals()


def plan_of(workspace: Workspace, distinct_id: str) -> Any:
    person = workspace.workspace.person(distinct_id)
    return person and person.values["plan"]


def refusing_upserts(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workspace refuses every upsert."""
    refusing_where(workspace, monkeypatch, lambda item: bool(item["action"] == "identify"))


def refusing_where(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, is_refused: Callable[[dict[str, Any]], bool]) -> None:
    """The workspace refuses these items."""
    batch = workspace.workspace.batch

    def instead(body: bytes) -> Any:
        spoilt = [{**item, "action": "odd"} if is_refused(item) else item for item in json.loads(body)["batch"]]
        return batch(json.dumps({"batch": spoilt}).encode())

    monkeypatch.setattr(workspace.workspace, "batch", instead)


def test_no_upsert_goes_back_in_time_after_a_later_day_was_cut_off_before_anything_was_recorded(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    earlier = event(1, "visit", "jane", f"{DAYS[0]}T10:00:00Z", **{"$set": {"city": "Bonn", "plan": "free"}})
    later = event(2, "visit", "jane", f"{DAYS[1]}T10:00:00Z", **{"$set": {"plan": "pro"}})
    workspace = start([earlier, later], CIO_MISSING_DAYS="allow").workspace
    bodies, batch = list[bytes](), workspace.batch

    def kept(body: bytes) -> Any:
        bodies.append(body)
        return batch(body)

    monkeypatch.setattr(workspace, "batch", kept)

    def cut_off(*_: Any) -> None:
        raise NotDelivered("Cut off, after Customer.io has accepted it.")

    with monkeypatch.context() as broken:
        broken.setattr(Ledger, "acknowledge", cut_off)
        stops(instance, [DAYS[1]])
    run(instance, [DAYS[0]])
    run(instance, [DAYS[1]])
    upserts = [item for body in bodies for item in json.loads(body)["batch"] if item["action"] == "identify"]
    times = [upsert["timestamp"] for upsert in upserts]
    assert (len(times), times) == (3, sorted(times))
    assert [upsert["attributes"].get("plan") for upsert in upserts] == ["pro", None, "pro"]
    assert upserts[1]["attributes"] == {"city": "Bonn"}


def test_a_days_receipt_stands_though_a_later_day_of_the_run_fails(start: Start, instance: dg.DagsterInstance) -> None:
    workspace = start(stream(DAYS))
    workspace.faults = lambda number, path: ("status", 401, {}) if number >= 4 else None
    stops(instance, DAYS)
    assert instance.get_materialized_partitions(DELIVERY) == set(DAYS[:2])
    records = instance.fetch_materializations(DELIVERY, limit=9).records
    metadata = {one.partition_key: values(one.asset_materialization.metadata) for one in records if one.asset_materialization}
    assert {day: one["events sent"] for day, one in metadata.items()} == dict.fromkeys(DAYS[:2], 2)
    workspace.faults = lambda number, path: None
    receipts = run(instance, DAYS)
    assert [receipts[day]["events sent"] for day in DAYS] == [0, 0, 2]
    assert [receipts[day][DELIVERED] for day in DAYS] == [2, 2, 2]
    assert instance.get_materialized_partitions(DELIVERY) == set(DAYS)


def test_an_event_refused_in_words_that_name_nothing_holds_up_no_other_day_and_is_decided_by_what_those_send(
    start: Start, instance: dg.DagsterInstance
) -> None:
    events = [one for one in stream(DAYS) if one["distinct_id"] == "jane"]
    workspace = start([{**events[0], "event": "odd"}, *events[1:]])
    answer_where(workspace, lambda _, body: b'"name":"odd"' in body, INACTIVE)
    receipts = run(instance, DAYS)
    assert [receipts[day][DELIVERED] for day in DAYS] == [0, 1, 1]
    assert [receipts[day][OPEN_REFUSALS] for day in DAYS] == [1, 0, 0]
    assert instance.get_materialized_partitions(DELIVERY) == set(DAYS)


def test_a_service_that_refuses_all_events_of_all_days_has_refused_none_for_good(
    start: Start, instance: dg.DagsterInstance
) -> None:
    workspace = start(stream(DAYS))
    answer = workspace.answer
    answer_where(workspace, lambda _, body: b'"action":"event"' in body, INACTIVE)
    with pytest.raises(dg.Failure, match="has accepted no event so far"):
        execute(instance, DAYS)
    workspace.answer = answer  # type: ignore[method-assign]
    receipts = run(instance, DAYS)
    assert [(receipts[day][DELIVERED], receipts[day][OPEN_REFUSALS]) for day in DAYS] == [(2, 0)] * 3


def test_a_receipt_tells_what_is_refused_and_open_also_on_a_rerun(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = start([*stream(DAYS[:1]), event(9, "paid", "jane", f"{DAYS[0]}T11:00:00Z")])
    refusing(workspace, monkeypatch, "paid")
    for events_sent in (2, 0):
        receipt = run(instance, DAYS[:1])[DAYS[0]]
        assert (receipt["events sent"], receipt[DELIVERED], receipt[OPEN_REFUSALS]) == (events_sent, 2, 1)
        assert receipt["refused by Customer.io"] == 1


def test_a_rerun_of_a_delivered_day_changes_no_number_that_is_plotted(start: Start, instance: dg.DagsterInstance) -> None:
    days = RECENT[1:]
    start(stream(days))
    first, again = (run(instance, days) for _ in range(2))
    plotted = [{day: {name: receipts[day][name] for name in PLOTTED} for day in days} for receipts in (first, again)]
    assert plotted[0] == plotted[1]
    assert [list(plotted[1][day].values()) for day in days] == [[2, 2, 2, 0], [1, 2, 2, 0]]
    assert [first[day][DAY_CHART] for day in days[-1:]] == [again[day][DAY_CHART] for day in days[-1:]]
    assert [[name for name in receipts[days[0]] if name in MEANING] for receipts in (first, again)] == [list(MEANING)] * 2
    assert {name for name, value in again[days[0]].items() if name in MEANING and isinstance(value, int)} == set(PLOTTED)


def test_nothing_refused_fails_while_something_is(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = start([*stream(DAYS[:1]), event(9, "paid", "jane", f"{DAYS[0]}T11:00:00Z")])
    refusing(workspace, monkeypatch, "paid")
    job = defs.resolve_job_def("customerio_sync")
    checks = {one.check_name: one for one in _execute(job, instance, DAYS[:1]).get_asset_check_evaluations()}
    assert not checks["nothing_refused"].passed
    assert checks["nothing_refused"].severity == dg.AssetCheckSeverity.WARN
    assert checks["nothing_refused"].metadata["refused, open"].value == 1


def test_redelivery_sends_while_it_holds_the_delivery_lock(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = start([*stream(DAYS[:1]), event(9, "paid", "jane", f"{DAYS[0]}T11:00:00Z")])
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "paid")
        run(instance, DAYS[:1])
    held: list[bool] = []
    hold, acknowledge = Ledger.hold_delivery_lock, Ledger.acknowledge

    @contextmanager
    def noted(self: Ledger, waiting: Callable[[], None]) -> Iterator[None]:
        with hold(self, waiting):
            held.append(True)
            yield
            held.clear()

    def only_while_held(self: Ledger, *answer: Any) -> None:
        assert held == [True]
        acknowledge(self, *answer)

    monkeypatch.setattr(Ledger, "hold_delivery_lock", noted)
    monkeypatch.setattr(Ledger, "acknowledge", only_while_held)
    assert defs.resolve_job_def("redeliver_refused").execute_in_process(instance=instance).success
    assert sent(workspace)["events"] == 3


def test_a_run_that_would_make_more_new_customers_than_allowed_stops_before_its_first_request(
    start: Start, instance: dg.DagsterInstance, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = start(stream(DAYS), CIO_MAX_NEW_CUSTOMERS="3")
    assert stops(instance, DAYS) == (
        "This run would make 4 new customers, more than CIO_MAX_NEW_CUSTOMERS allows (3): nothing was sent."
        " If that is intended, set CIO_MAX_NEW_CUSTOMERS, or max_new_customers in the launchpad, to 4 or more."
    )
    assert sent(workspace) == {"people": 0, "events": 0}
    assert "4 new customers" in stops(instance, DAYS, max_new_customers=2)
    (tmp_path / "list").write_text("new-1\n")
    monkeypatch.setenv("CIO_SUPPRESSED_FILE", str(tmp_path / "list"))
    assert run(instance, DAYS)[DAYS[2]]["new customers"] == 1, "who is not sent does not count"
    monkeypatch.delenv("CIO_SUPPRESSED_FILE")
    assert run(instance, DAYS, max_new_customers=1)[DAYS[1]]["new customers"] == 1, "nor who is there already"
    monkeypatch.setenv("CIO_MAX_NEW_CUSTOMERS", "0")
    run(instance, DAYS, resend=True)


def test_the_limit_applies_to_the_new_customers_that_are_counted(start: Start, instance: dg.DagsterInstance) -> None:
    workspace = start(stream(DAYS), CIO_MAX_NEW_CUSTOMERS="1")
    run(instance, DAYS, limit=1)
    assert sent(workspace)["people"] == 1


@pytest.mark.parametrize(
    ("tags", "days"), [({}, RECENT), ({"dagster/backfill": "a"}, RECENT[2:]), ({DAYS_IN_ALL: "8"}, RECENT[2:])]
)
def test_a_backfill_that_could_start_more_campaigns_than_allowed_stops(
    start: Start, instance: dg.DagsterInstance, tags: dict[str, str], days: list[str]
) -> None:
    workspace = start(stream(RECENT), CIO_MAX_CAMPAIGN_EVENTS="1")
    said = stops(instance, days, tags)
    assert "events that can start campaigns, more than CIO_MAX_CAMPAIGN_EVENTS allows (1): nothing was sent." in said
    assert sent(workspace)["events"] == 0
    execute(instance, RECENT, {"dagster/schedule_name": "customerio_daily"})
    execute(instance, days, tags)
    assert sent(workspace)["events"] == 6


def test_redelivery_has_the_limits_too(start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = start(stream(DAYS[:1]))
    with monkeypatch.context() as broken:
        refusing_where(workspace, broken, lambda item: "_update" not in item["attributes"])
        assert run(instance, DAYS[:1])[DAYS[0]]["refused by Customer.io"] == 4
    before = len(workspace.requests)
    monkeypatch.setenv("CIO_MAX_NEW_CUSTOMERS", "1")
    job = defs.resolve_job_def("redeliver_refused")
    with pytest.raises(dg.Failure, match="would make 2 new customers"):
        job.execute_in_process(instance=instance)
    assert [request.method for request in workspace.requests[before:]] == ["GET"]
    job.execute_in_process(instance=instance, run_config={"ops": {"send_refused_again": {"config": {"max_new_customers": 2}}}})
    assert plan_of(workspace, "jane") == "0"


def test_redelivery_sends_and_counts_what_was_refused_on_all_days(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = start([event(number, "paid", "jane", f"{day}T11:00:00Z") for number, day in enumerate(DAYS[:2])])
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "paid")
        run(instance, DAYS[:2])
    again = defs.resolve_job_def("redeliver_refused").execute_in_process(instance=instance)
    [output] = [one for one in again.all_events if one.event_type_value == "STEP_OUTPUT"]
    assert output.step_output_data.metadata["events sent"].value == 2
    assert sent(workspace)["events"] == 2


def test_a_refusal_that_names_nothing_holds_up_no_other_day_of_a_redelivery(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = zip(DAYS, ["odd", "paid", "paid"], strict=True)
    workspace = start([event(number, name, "jane", f"{day}T11:00:00Z") for number, (day, name) in enumerate(names)])
    with monkeypatch.context() as broken:
        refusing(workspace, broken, "odd")
        refusing(workspace, broken, "paid")
        run(instance, DAYS)
    answer_where(workspace, lambda _, body: b'"name":"odd"' in body, INACTIVE)
    again = defs.resolve_job_def("redeliver_refused").execute_in_process(instance=instance)
    receipts = {one.partition: values(one.metadata) for one in again.asset_observations_for_node("send_refused_again")}
    assert [(receipts[day][DELIVERED], receipts[day][OPEN_REFUSALS]) for day in DAYS] == [(0, 1), (1, 0), (1, 0)]


def test_what_may_pass_of_consent_is_what_is_set_when_it_is_sent(
    start: Start, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = {"$set": {"plan": "0", "unsubscribed": False}}
    workspace = start([event(1, "visit", "jane", f"{DAYS[0]}T10:00:00Z", **heard)], CIO_ALLOW_CONSENT="Yes")

    def consent() -> Any:
        person = workspace.workspace.person("jane")
        assert person is not None
        return person.values.get("unsubscribed")

    with monkeypatch.context() as broken:
        refusing_upserts(workspace, broken)
        run(instance, DAYS[:1])
    monkeypatch.setenv("CIO_ALLOW_CONSENT", "No")
    defs.resolve_job_def("redeliver_refused").execute_in_process(instance=instance)
    assert consent() is None
    monkeypatch.setenv("CIO_ALLOW_CONSENT", "Yes")
    run(instance, DAYS[:1], resend=True)
    assert consent() is False


def test_with_events_that_are_too_recent_what_only_they_bring_is_left_for_later(
    start: Start, instance: dg.DagsterInstance
) -> None:
    """An attribute, a customer, and the earlier events of an anonymous visitor that a held `$identify` names."""
    at = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=2)
    day, cut = str(at.date()), at.replace(hour=12)
    set_ = {"$set": {"plan": "free"}}
    workspace = start(
        [
            event(1, "visit", "anon", f"{day}T10:00:00Z"),
            event(2, "$identify", "jane", f"{day}T11:00:00Z", **set_),
            event(3, "paid", "jane", f"{day}T13:00:00Z", **{"$set": {"plan": "pro"}}),
            event(4, "$identify", "jane", f"{day}T13:30:00Z", **{"$anon_distinct_id": "anon"}),
            event(5, "$identify", "joe", f"{day}T14:00:00Z"),
        ],
        CIO_ANONYMOUS_USERS="identified",
        CIO_STITCH_ANONYMOUS_DAYS="30",
        CIO_MISSING_DAYS="allow",
    )
    hours = (datetime.now(UTC) - cut) / timedelta(hours=1)
    receipt = run(instance, [day], hold_recent_events=hours)[day]
    assert (receipt["events sent"], receipt["upserts sent"], receipt["events held as too recent"]) == (1, 1, 4)
    assert receipt[LEFT_FOR_ANOTHER_RUN] == 6, "also an upsert of each of the two people"
    assert plan_of(workspace, "jane") == "free"
    receipt = run(instance, [day])[day]
    assert (receipt["events sent"], receipt["new customers"], LEFT_FOR_ANOTHER_RUN in receipt) == (4, 1, False)
    assert plan_of(workspace, "jane") == "pro"
    assert sent(workspace) == {"people": 2, "events": 5}


def test_new_customers_with_nothing_but_personless_events_are_counted(start: Start, instance: dg.DagsterInstance) -> None:
    personless = {"$process_person_profile": False}
    start(
        [
            event(1, "visit", "somebody", f"{DAYS[0]}T10:00:00Z", **personless),
            event(2, "visit", "somebody", f"{DAYS[0]}T11:00:00Z"),
            event(3, "visit", "nobody-1", f"{DAYS[0]}T10:00:00Z", **personless),
            event(4, "visit", "nobody-2", f"{DAYS[0]}T10:00:00Z", **personless),
        ]
    )
    receipt = run(instance, DAYS[:1])[DAYS[0]]
    assert (receipt["new customers"], receipt[ONLY_PERSONLESS]) == (3, 2)


@pytest.mark.parametrize(
    "settings", [{"CIO_IDENTIFY_BY_EMAIL": "Yes"}, {"CIO_ANONYMOUS_USERS": "identified"}, {"CIO_ANONYMOUS_USERS": "emails"}]
)
def test_a_day_that_needs_missing_earlier_days_is_not_delivered(
    start: Start, instance: dg.DagsterInstance, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = start([*stream(DAYS), event(9, "$identify", "jane", f"{DAYS[2]}T11:00:00Z")], **settings)
    assert stops(instance, DAYS[2:]) == (
        "2 earlier days were never learned (2025-01-01 to 2025-01-02), and with the current CIO_IDENTIFY_BY_EMAIL and"
        " CIO_ANONYMOUS_USERS they decide what is sent of 2025-01-03: nothing was sent. Run them first, beginning with the"
        " oldest; or set CIO_START_DATE to the first day you have, or CIO_MISSING_DAYS=allow if that is intended."
    )
    assert sent(workspace) == {"people": 0, "events": 0}
    run(instance, DAYS[:1])
    assert "1 earlier day was never learned (2025-01-02)" in stops(instance, DAYS[2:])
    monkeypatch.setenv("CIO_MISSING_DAYS", "allow")
    run(instance, DAYS[2:])
    monkeypatch.setenv("CIO_MISSING_DAYS", "refuse")
    run(instance, DAYS[1:])


def test_a_day_that_needs_the_history_is_not_delivered_without_it(start: Start, instance: dg.DagsterInstance) -> None:
    workspace = start(stream(DAYS[:1]), CIO_ANONYMOUS_USERS="emails")
    assets = ["posthog_events", "identities", "customers", "events", "rejects", "customerio_delivery"]
    with pytest.raises(dg.Failure, match=r"before the current CIO_START_DATE was never read.* Materialize identity_history"):
        defs.resolve_job_def("customerio_sync").execute_in_process(
            instance=instance, partition_key=DAYS[0], asset_selection=[asset_key(name) for name in assets]
        )
    assert sent(workspace)["people"] == 0
    run(instance, DAYS[:1])


def test_days_that_need_no_earlier_ones_are_delivered_without_them(start: Start, instance: dg.DagsterInstance) -> None:
    start(stream(DAYS), CIO_ANONYMOUS_USERS="all")
    assert run(instance, DAYS[2:])[DAYS[2]]["events sent"] == 2
