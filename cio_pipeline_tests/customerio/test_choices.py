"""A delivery otherwise than usual: looked at before, held, limited, forced, without the people who asked to be forgotten."""

from __future__ import annotations

import threading
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cio_pipeline.attribute_state import name_hash, pack
from cio_pipeline.customerio import delivery
from cio_pipeline.customerio.client import PROBE, TrackClient
from cio_pipeline.customerio.counts import CAMPAIGN_EVENTS
from cio_pipeline.customerio.delivery import Report, preview
from cio_pipeline.customerio.forecast import Forecast
from cio_pipeline.customerio.selection import DEFAULTS, DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.customerio.suppression_list import parse
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import DayTotals, Ledger
from cio_pipeline.state.refusals import Refusal
from cio_pipeline_tests.deliveries import deliver, redeliver
from cio_pipeline_tests.rules.streams import Frames, event, tables

DAY, NEXT_DAY = "2026-03-02", "2026-03-03"
Workspace = customerio.CustomerioServer


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def send(workspace: Workspace, ledger: Ledger, made: Frames, day: str = DAY, options: DeliveryOptions = DEFAULTS) -> Report:
    client = TrackClient(workspace.url, "sandbox", "sandbox-key", 1000)
    return deliver(day, [made.shard], ledger, client, options=options)


def look(ledger: Ledger, made: Frames, options: DeliveryOptions = DEFAULTS, seen: set[str] | None = None) -> Report:
    return preview(DAY, [made.shard], ledger, options, set() if seen is None else seen)


def again(workspace: Workspace, ledger: Ledger, day: str = DAY) -> Report:
    return redeliver(day, ledger.refusals(day)[day], ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))


def broken(made: Frames, what: str, by: str) -> Frames:
    """The tables with a text of their operations replaced, so that Customer.io refuses them."""
    customers, events = (
        frame.assign(operation=frame["operation"].str.replace(what, by)) for frame in (made.customers, made.events)
    )
    return made._replace(customers=customers, events=events)


def refuse_all(workspace: Workspace, status: int, said: Any = None) -> None:
    """Refuses what a delivery sends, but not what is sent to see whether just anything is refused."""
    answer, given = workspace.answer, (status, said or {})
    workspace.answer = lambda *request: answer(*request) if PROBE in request[3] else given  # type: ignore[method-assign]


def people(workspace: Workspace) -> dict[str, int]:
    return {who["identifiers"].get("id", ""): len(who["events"]) for who in (p.to_dict() for p in workspace.workspace.people())}


def test_a_look_says_what_a_delivery_then_does(workspace: Workspace, ledger: Ledger) -> None:
    send(workspace, ledger, tables(event("a", "known", set_={"plan": "free"}), event("b", "same", set_={"plan": "pro"})))
    today = pd.Timestamp.now(tz="UTC").isoformat()
    made = tables(
        {**event("a", "known", set_={"plan": "free"}), "uuid": "00000000-0000-0000-0000-000000000001"},
        {**event("b", "same", set_={"plan": "pro"}), "uuid": "00000000-0000-0000-0000-000000000002"},
        event("c", "known", at="2026-03-02T11:00Z", set_={"plan": "pro"}),
        event("c", "new", at=today),
        event("Invited bob@example.com", "new too", set_={"email": "jane@example.com"}),
    )
    requests, kept = len(workspace.requests), ledger.states(made.customers["key"])
    shown = look(ledger, made)
    assert (len(workspace.requests), ledger.states(made.customers["key"])) == (requests, kept), "nothing was sent or noted"
    counts = shown.counts
    assert (counts["new customers"], counts["customers changed"], counts["upserts with nothing new"]) == (2, 1, 1)
    assert (counts["events to send"], counts["events delivered before"]) == (3, 2)
    assert counts["events under 72 hours"] == 1
    assert shown.event_names == {"c": 2, "Invited b***@e***.com": 1}
    sent = send(workspace, ledger, made)
    assert sent.counts["new customers"] == counts["new customers"]
    assert sent.counts["upserts sent"] == counts["upserts to send"]
    assert len(workspace.requests) - requests == counts["requests"] == 1
    assert workspace.requests[-1].bytes == counts["bytes"]
    assert shown.sample == sent.sample
    assert "jane" not in str(shown.sample)


def test_an_event_that_is_sent_again_counts_once_for_those_that_may_start_campaigns(
    workspace: Workspace, ledger: Ledger
) -> None:
    made = tables(event("a", at=pd.Timestamp.now(tz="UTC").isoformat()), event("b"))
    counts = [send(workspace, ledger, made, options=DeliveryOptions(resend=resend)).counts for resend in (False, False, True)]
    assert [one["events sent"] for one in counts] == [2, 0, 2]
    assert [one[CAMPAIGN_EVENTS] for one in counts] == [1, 0, 0]
    assert ledger.totals(DAY) == DayTotals(events=2, new_customers=1, campaign_events=1)


def test_a_look_at_several_days_counts_a_new_customer_once(ledger: Ledger) -> None:
    seen: set[str] = set()
    looks = [
        look(ledger, tables(event(), event("b", "u2")), seen=seen),
        look(ledger, tables(event(), event("c", "u3")), seen=seen),
    ]
    assert [shown.counts["new customers"] for shown in looks] == [2, 1]
    assert looks[1].counts["customers changed"] == 1


def test_a_look_expects_what_was_refused_before_to_stay_so(workspace: Workspace, ledger: Ledger) -> None:
    made = broken(tables(event("bad"), event("good")), '"name":"bad"', '"name":""')
    send(workspace, ledger, made)
    assert look(ledger, made).counts["refused before: required name"] == 1


def test_the_limit_is_the_first_customers_with_their_events(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(*(event(f"e{n}", f"u{n % 5}") for n in range(20)))
    options = DeliveryOptions(limit=2)
    assert look(ledger, made, options).counts["events to send"] == 8
    send(workspace, ledger, made, options=options)
    assert people(workspace) == {"u0": 4, "u1": 4}
    assert send(workspace, ledger, made, options=options).counts["events sent"] == 0
    assert send(workspace, ledger, made).counts["events sent"] == 12


def test_the_limit_holds_over_shards(ledger: Ledger, workspace: Workspace) -> None:
    made = [tables(event("a", f"{shard}-{n}")) for shard in range(3) for n in range(1)]
    client = TrackClient(workspace.url, "sandbox", "sandbox-key", 1000)
    report = deliver(DAY, [one.shard for one in made], ledger, client, options=DeliveryOptions(limit=2))
    assert report.counts["upserts sent"] == 2


def test_a_forced_delivery_sends_everything_but_attributes_that_were_set_since(workspace: Workspace, ledger: Ledger) -> None:
    older = tables(event("a", set_={"plan": "free", "city": "Bonn"}))
    send(workspace, ledger, older)
    newer = tables({**event("b", at="2026-03-03T10:00Z", set_={"plan": "pro"}), "uuid": "00000000-0000-0000-0000-00000000000b"})
    send(workspace, ledger, newer, NEXT_DAY)
    counts = send(workspace, ledger, older, options=DeliveryOptions(resend=True)).counts
    assert (counts["upserts sent"], counts["events sent"], counts["attributes newer in Customer.io"]) == (1, 1, 2)
    person = workspace.workspace.person("u1")
    assert person is not None
    assert (person.values["plan"], person.values["city"], len(person.events)) == ("pro", "Bonn", 2)


def test_a_forced_delivery_sends_what_was_refused(workspace: Workspace, ledger: Ledger) -> None:
    made = broken(tables(event("bad")), '"name":"bad"', '"name":""')
    send(workspace, ledger, made)
    assert send(workspace, ledger, made, options=DeliveryOptions(resend=True)).counts["refused: required name"] == 1


def listing(*lines: str) -> Suppressed:
    return parse("\n".join(lines).encode())


def hashed(text: str) -> str:
    return sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    "line", ["u1", " u1\r", "Jane@Example.com", hashed("u1"), hashed("jane@example.com"), hashed("jane@example.com").upper()]
)
@pytest.mark.parametrize("by_email", [False, True])
def test_nothing_of_the_suppressed_is_sent_and_it_is_counted(
    workspace: Workspace, ledger: Ledger, line: str, by_email: bool
) -> None:
    made = tables(
        event("a", "u1", set_={"email": "jane@example.com"}), event("b", "u1"), event("c", "u2"), identify_by_email=by_email
    )
    options = DeliveryOptions(listing(line, "", "nobody"))
    assert look(ledger, made, options).counts["new customers"] == 1
    counts = send(workspace, ledger, made, options=options).counts
    assert (counts["customers suppressed"], counts["events suppressed"]) == (1, 2)
    assert people(workspace) == {"u2": 1}
    assert ledger.states(["id:u1", "email:jane@example.com"]) == {}


@pytest.mark.parametrize("line", ["u1", hashed("u1")])
def test_a_suppressed_distinct_id_is_found_behind_an_email_that_it_shares(
    workspace: Workspace, ledger: Ledger, line: str
) -> None:
    shared = {"email": "jane@example.com"}
    made = tables(event("a", "u1", set_=shared), event("b", "u2", set_=shared), event("c", "u3"), identify_by_email=True)
    counts = send(workspace, ledger, made, options=DeliveryOptions(listing(line))).counts
    assert (counts["customers suppressed"], counts["events suppressed"]) == (1, 2)
    assert people(workspace) == {"u3": 1}


def test_a_distinct_id_is_suppressed_only_in_its_own_case() -> None:
    listed = listing("ABC", hashed("DEF"))
    assert listed.has("ABC")
    assert listed.has("DEF")
    assert not listed.has("abc")
    assert not listed.has("def")
    assert not Suppressed().has("")


def test_what_is_accepted_the_second_time_is_closed(workspace: Workspace, ledger: Ledger) -> None:
    answer = workspace.answer
    refuse_all(workspace, 413)
    send(workspace, ledger, tables(event("a", set_={"plan": "pro"}), event("large", "u2", d="x" * 50_000)))
    workspace.answer = answer  # type: ignore[method-assign]
    assert len(ledger.refused(DAY)) == 4
    report = again(workspace, ledger)
    assert (report.counts["upserts sent"], report.counts["events sent"]) == (2, 2)
    assert ledger.refusals() == {}
    assert people(workspace) == {"u1": 1, "u2": 1}


def test_what_is_refused_again_stays_with_its_new_reason(workspace: Workspace, ledger: Ledger) -> None:
    made = broken(tables(event("bad")), '"name":"bad"', '"name":""')
    workspace_answer = workspace.answer
    refuse_all(workspace, 413)
    send(workspace, ledger, made)
    workspace.answer = workspace_answer  # type: ignore[method-assign]
    again(workspace, ledger)
    assert ledger.refused_by_reason() == {"required name": 1}


def test_r17_a_refused_upsert_sent_again_leaves_newer_attributes_alone(workspace: Workspace, ledger: Ledger) -> None:
    refused = tables(event("a", set_={"plan": "free", "city": "Bonn"}))
    answer = workspace.answer
    refuse_all(workspace, 413)
    send(workspace, ledger, refused)
    workspace.answer = answer  # type: ignore[method-assign]
    send(
        workspace,
        ledger,
        tables(
            {
                **event("b", at="2026-03-03T10:00Z", set_={"plan": "pro"}),
                "uuid": "00000000-0000-0000-0000-00000000000b",
            }
        ),
        NEXT_DAY,
    )
    again(workspace, ledger)
    person = workspace.workspace.person("u1")
    assert person is not None
    assert (person.values["plan"], person.values["city"]) == ("pro", "Bonn")
    assert ledger.refusals() == {}


def test_r19_what_was_made_or_refused_under_another_setting_subscribes_nobody_again(
    workspace: Workspace, ledger: Ledger
) -> None:
    made = tables(
        event(set_={"plan": "pro", "unsubscribed": False, "cio_subscription_preferences": {"topics": {"a": True}}}),
        event("b", "u2", set_={"Unsubscribed ": None, "unsubscribed": True}),
        allow_consent="Yes",
    )
    answer = workspace.answer
    refuse_all(workspace, 413)
    send(workspace, ledger, made, options=DeliveryOptions(allow_consent="Yes"))
    workspace.answer = answer  # type: ignore[method-assign]
    shown = again(workspace, ledger)
    assert shown.counts["attributes about consent left out (R19)"] == 3
    assert ledger.refusals() == {}
    send(workspace, ledger, made, options=DeliveryOptions(resend=True))
    people = {person.identifiers["id"]: person.values for person in workspace.workspace.people()}
    assert people == {"u1": {"plan": "pro", "identifier": "u1"}, "u2": {"unsubscribed": True, "identifier": "u2"}}


def test_a_refused_event_alone_counts_as_a_new_customer_until_its_customer_is_known(ledger: Ledger) -> None:
    body = '{"timestamp": 1772445600}'
    refused = [Refusal("1", "event", "invalid", "", body, "id:u1"), Refusal("2", "event", "invalid", "", body, "id:u2")]
    ledger.acknowledge(DAY, Acknowledgement(customers={"id:u2": pack({name_hash("plan"): (b"123456", 1)})}))
    forecast = Forecast()
    forecast.add_refusals(refused, ledger)
    assert forecast.new_customers == 1


def test_what_was_refused_goes_out_upserts_first_then_events_by_time(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(*(event(f"e{hour}", at=f"2026-03-02T{hour}:00Z", text=r"\x00") for hour in range(10, 20)))
    answer = workspace.answer
    refused = [{"batch_index": index, "reason": "invalid"} for index in reversed(range(11))]
    refuse_all(workspace, 207, {"errors": refused})
    send(workspace, ledger, made)
    workspace.answer = answer  # type: ignore[method-assign]
    before = len(workspace.requests)
    assert send(workspace, ledger, made).counts["refused before: invalid"] == 11
    assert len(workspace.requests) == before
    again(workspace, ledger)
    person = workspace.workspace.person("u1")
    assert person is not None
    assert [one["name"] for one in person.to_dict()["events"]] == [f"e{hour}" for hour in range(10, 20)]


def test_a_refusal_that_newer_data_has_settled_is_closed_without_a_request(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(event("a", set_={"plan": "free"}))
    answer = workspace.answer
    refuse_all(workspace, 413)
    send(workspace, ledger, made)
    workspace.answer = answer  # type: ignore[method-assign]
    newer = {**event("b", at="2026-03-03T10:00Z", set_={"plan": "pro"}), "uuid": "00000000-0000-0000-0000-00000000000b"}
    send(workspace, ledger, tables(newer), NEXT_DAY)
    assert [refusal.kind for refusal in ledger.refused(DAY).values()] == ["event"]


def test_a_late_value_wins_though_an_upsert_of_a_later_time_was_sent(workspace: Workspace, ledger: Ledger) -> None:
    """Customer.io keeps an attribute under its upsert's time: the plan of 10:00 went with an upsert of 18:00."""
    first = [
        event("a", at="2026-03-02T10:00Z", set_={"plan": "free"}),
        event("b", at="2026-03-02T18:00Z", set_={"city": "Bonn"}),
    ]
    send(workspace, ledger, tables(*first))
    newer = {**event("c", at="2026-03-03T10:00Z", set_={"city": "Köln"}), "uuid": "00000000-0000-0000-0000-00000000000c"}
    send(workspace, ledger, tables(newer), NEXT_DAY)
    late = {**event("late", at="2026-03-02T12:00Z", set_={"plan": "pro"}), "uuid": "00000000-0000-0000-0000-00000000000d"}
    send(workspace, ledger, tables(*first, late))
    person = workspace.workspace.person("u1")
    assert person is not None
    assert (person.values["plan"], person.values["city"]) == ("pro", "Köln")


def test_two_deliveries_of_a_day_at_once_send_it_once_and_at_one_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.batches.MAX_REQUEST_BYTES", 2_000)
    monkeypatch.setattr("cio_pipeline.state.delivery_lock.RETRY_SECONDS", 0.02)
    made, times, url = (
        tables(*(event(f"e{n}", f"u{n % 9}") for n in range(300))),
        list[float](),
        f"sqlite:///{tmp_path / 'l.db'}",
    )
    waited: list[bool] = []

    def noted(number: int, path: str) -> None:
        times.append(time.monotonic())

    def run(day: str) -> None:
        ledger = Ledger(url)
        with ledger.hold_delivery_lock(lambda: waited.append(True)):
            delivery.deliver(day, [made.shard], ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 50))

    with customerio.serve(faults=noted) as workspace:
        runs = [threading.Thread(target=run, args=(day,)) for day in (DAY, DAY, NEXT_DAY)]
        for one in runs:
            one.start()
        for one in runs:
            one.join()
    one_day = sum(request.status == 200 for request in workspace.requests) / 2
    assert len(waited) == 2
    assert len(times) == 2 * one_day, "the day that two runs delivered went out once"
    assert (len(times) - 1) / (max(times) - min(times)) <= 50 * 1.05
