"""What is still to be sent, by the tables and what the ledger knows, without a request."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.attribute_state import State, name_hash, pack, unpack
from cio_pipeline.customerio.batches import Item
from cio_pipeline.customerio.client import NotDelivered
from cio_pipeline.customerio.forecast import Forecast, RunLimits, unsent_events
from cio_pipeline.customerio.plan import LedgerView, Plan, plan_shard
from cio_pipeline.customerio.redelivery import plan_redelivery
from cio_pipeline.customerio.selection import DEFAULTS, DeliveryOptions, texts, to_deliver
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.packed_ids import are_in, pack_ids
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.state.refusals import Refusal
from cio_pipeline_tests.rules.streams import Frames, event, tables

DAY = "2026-03-02"


def refusal(made: Frames, operation: str | None = None) -> Refusal:
    """The day's only event, as it was refused."""
    [row] = made.events.to_dict("records")
    return Refusal(row["ulid"], "event", "invalid", "", row["operation"] if operation is None else operation, row["key"])


def refused_upsert(upsert: Any) -> Refusal:
    return Refusal(upsert.item_id, "customer", "invalid", "", upsert.operation.decode(), upsert.key, state=unpack(upsert.state))


def planned(
    made: Frames,
    states: Mapping[str, State] | None = None,
    delivered: Any = (),
    refused: tuple[Refusal, ...] = (),
    **options: Any,
) -> Plan:
    packed = {key: pack(state) for key, state in (states or {}).items()}
    known = LedgerView(packed, pack_ids(list(delivered)), {one.item_id: one for one in refused})
    return plan_shard(*made.shard, known, DeliveryOptions(**options))


def items_of(plan: Plan) -> list[Item]:
    return plan.upserts + plan.events.items()


def test_what_was_refused_is_sent_once_it_is_another_operation() -> None:
    made = tables(event())
    assert [item.is_customer for item in items_of(planned(made, refused=(refusal(made),)))] == [True]
    assert [item.is_customer for item in items_of(planned(made, refused=(refusal(made, "{}"),)))] == [True, False]


def test_an_upsert_that_was_refused_is_not_sent_again_with_only_a_later_time() -> None:
    made = tables(event(set_={"plan": "pro"}))
    [upsert] = planned(made).upserts
    earlier = json.dumps({**json.loads(upsert.operation), "timestamp": 1}).encode()
    assert planned(made, refused=(refused_upsert(upsert._replace(operation=earlier)),)).upserts == []
    free = earlier.replace(b"pro", b"free")
    assert len(planned(made, refused=(refused_upsert(upsert._replace(operation=free)),)).upserts) == 1


def test_a_refusal_of_an_event_that_is_delivered_is_closed() -> None:
    made = tables(event())
    [ulid] = made.events["ulid"]
    refused = refusal(made)
    assert planned(made, delivered=(ulid,), refused=(refused,)).closed_ids == [ulid]
    again = plan_redelivery([refused], LedgerView({}, pack_ids([ulid]), {ulid: refused}), DEFAULTS)
    assert (items_of(again), again.closed_ids) == ([], [ulid])


def test_each_upsert_of_a_new_customer_may_create_it_also_when_the_first_was_refused_before() -> None:
    large = {f"a{n}": "x" * 900 for n in range(60)}
    made = tables(event(raw=json.dumps({"$set": large})))
    first, *others = planned(made).upserts
    assert others
    assert all(upsert.is_new for upsert in [first, *others])
    left = planned(made, refused=(refused_upsert(first),)).upserts
    assert [(upsert.item_id, upsert.is_new) for upsert in left] == [(upsert.item_id, True) for upsert in others]
    [again] = plan_redelivery([refused_upsert(first)], LedgerView({}, pack_ids([]), {}), DEFAULTS).upserts
    assert again.is_new


def test_a_customer_counts_as_personless_only_when_new() -> None:
    personless = tables(event(raw=json.dumps({"$set": {"n": 1}, "$process_person_profile": False})))
    [key] = personless.customers["key"]
    for known, expected in ((False, (True, True)), (True, (False, False))):
        upsert = items_of(planned(personless, {key: {b"other": (b"value!", 1)}} if known else {}))[0]
        assert (upsert.is_new, upsert.is_personless) == expected


def test_an_upsert_that_is_older_or_brings_nothing_new_is_counted_and_settled() -> None:
    made = tables(event(set_={"plan": "pro"}))
    [upsert] = [item for item in items_of(planned(made)) if item.is_customer]
    sent = unpack(upsert.state)
    newer = {name: (b"other!", time + 1) for name, (_, time) in sent.items()}
    for state, why in (
        (newer, "upserts whose attributes are all newer in Customer.io"),
        (sent, "upserts with nothing new"),
    ):
        found = planned(made, {upsert.key: state}, refused=(refused_upsert(upsert),))
        assert (found.counts[why], found.closed_ids) == (1, [upsert.item_id])


def test_what_was_refused_goes_out_upserts_before_events() -> None:
    made = tables(event(set_={"plan": "pro"}))
    [upsert] = [item for item in items_of(planned(made)) if item.is_customer]
    again = [refusal(made), refused_upsert(upsert)]
    items = items_of(plan_redelivery(again, LedgerView({}, pack_ids([]), {}), DEFAULTS))
    assert [item.is_customer for item in items] == [True, False]


def test_the_limit_counts_whom_is_left_after_the_suppressed_and_what_is_beyond_it() -> None:
    made = tables(event("a"), event("b", "u2"), event("c", "u3"), event("d", "u3"))
    counts = Counter[str]()
    options = DeliveryOptions(Suppressed(frozenset({"u1"})), limit=1)
    [(customers, events)] = to_deliver([made.shard], options, counts)
    assert (texts(customers, "key"), texts(events, "name")) == (["id:u2"], ["b"])
    assert counts == {
        "customers suppressed": 1,
        "events suppressed": 1,
        "customers beyond the limit": 1,
        "events beyond the limit": 2,
    }


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def young(name: str = "signed up", who: str = "u1") -> dict[str, Any]:
    return event(name, who, at=str(pd.Timestamp.now(tz="UTC").floor("s")))


def counted(made: Frames, ledger: Ledger, options: DeliveryOptions = DEFAULTS, days: int = 1) -> tuple[int, int]:
    """The new customers and the events that can start campaigns of so many days, all with these tables."""
    forecast = Forecast()
    for _ in range(days):
        forecast.add_day(DAY, [made.shard], ledger, options)
    return forecast.new_customers, forecast.campaign_events


def test_a_forecast_counts_a_customer_once_and_leaves_out_what_is_delivered_or_refused_as_it_is(ledger: Ledger) -> None:
    made = tables(young(), event("old"))
    assert counted(made, ledger, days=2) == (1, 2)
    [ulid] = made.events.loc[made.events["name"] == "signed up", "ulid"]
    ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([ulid]).tobytes()))
    assert counted(made, ledger) == (1, 0)
    assert counted(made, ledger, DeliveryOptions(resend=True)) == (1, 1)


def test_a_forecast_leaves_out_what_was_refused_and_counts_it_among_the_refusals_while_it_is_young(ledger: Ledger) -> None:
    for made, count in ((tables(young()), 1), (tables(event()), 0)):
        ledger.acknowledge(DAY, Acknowledgement(refused=[refusal(made)]))
        assert counted(made, ledger)[1] == 0
        forecast = Forecast()
        forecast.add_refusals([refusal(made)], ledger)
        assert forecast.campaign_events == count


def test_a_refused_upsert_is_no_event_that_can_start_a_campaign(ledger: Ledger) -> None:
    made, forecast = tables(young()), Forecast()
    [row] = made.customers.to_dict("records")
    forecast.add_refusals([Refusal("id#0", "customer", "invalid", "", row["operation"], row["key"])], ledger)
    assert (forecast.new_customers, forecast.campaign_events) == (1, 0)


def test_as_many_as_the_limits_allow_pass(ledger: Ledger) -> None:
    forecast, made = Forecast(), tables(young())
    forecast.add_day(DAY, [made.shard], ledger, DEFAULTS)
    forecast.check(RunLimits(1, 1))
    for limits in (RunLimits(0, None), RunLimits(None, 0)):
        with pytest.raises(NotDelivered, match="1 or more"):
            forecast.check(limits)


def test_events_that_are_unsent_are_none_of_the_suppressed_and_none_beyond_the_limit(ledger: Ledger) -> None:
    made = tables(event("a"), event("b", "u2"), event("c", "u3"))
    shards = [made.shard]
    assert unsent_events(DAY, shards, ledger, DeliveryOptions(Suppressed(frozenset({"u1"})), limit=1)) == 2
    ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids(made.events["ulid"].tolist()).tobytes()))
    assert [unsent_events(DAY, shards, ledger, DeliveryOptions(resend=resend)) for resend in (False, True)] == [0, 3]


def test_no_upsert_of_a_customer_is_older_than_one_before_it() -> None:
    large = {f"a{n:02}": "x" * 900 for n in range(60)}
    made = tables(
        event(raw=json.dumps({"$set": large})), event("later", at="2026-03-02T11:00Z", raw=json.dumps({"$set": {"a00": "new"}}))
    )
    times = [json.loads(item.operation)["timestamp"] for item in items_of(planned(made)) if item.is_customer]
    assert len(times) > 1
    assert times == sorted(times)


def test_r19_an_object_of_preferences_made_under_another_setting_goes_out_as_the_topics_that_pass() -> None:
    attributes_set = {"plan": "pro", "cio_subscription_preferences": {"topics": {"news": False, "offers": True}}}
    made = tables(event(set_=attributes_set), allow_consent="Yes")
    [upsert] = planned(made, allow_consent="unsubscribe").upserts
    attributes = json.loads(upsert.operation)["attributes"]
    assert attributes == {"plan": "pro", "identifier": "u1", "cio_subscription_preferences.topics.news": False}
    assert set(unpack(upsert.state)) == set(map(name_hash, attributes))
    assert planned(made, {"id:u1": unpack(upsert.state)}, allow_consent="unsubscribe").upserts == []


def test_r10_a_topic_that_makes_too_long_a_name_is_left_out_of_an_upsert_derived_under_another_setting() -> None:
    topics = {"news": False, "n" * 140: False}
    made = tables(event(set_={"cio_subscription_preferences": {"topics": topics}}), allow_consent="Yes")
    plan = planned(made, allow_consent="unsubscribe")
    [upsert] = plan.upserts
    assert json.loads(upsert.operation)["attributes"] == {"identifier": "u1", "cio_subscription_preferences.topics.news": False}
    assert plan.counts["attributes about consent left out (R19)"] == 1


def test_r19_an_upsert_that_holds_only_what_may_not_pass_is_closed_without_any_newer_attribute() -> None:
    made = tables(event(set_={"unsubscribed": False}), allow_consent="Yes")
    [upsert] = planned(made, allow_consent="Yes").upserts
    only = json.loads(upsert.operation) | {"attributes": {"unsubscribed": False}}
    state = {name_hash("unsubscribed"): unpack(upsert.state)[name_hash("unsubscribed")]}
    refused = Refusal(upsert.item_id, "customer", "invalid", "", json.dumps(only), upsert.key, state=state)
    recorded = LedgerView({}, pack_ids([]), {refused.item_id: refused})
    plan = plan_redelivery([refused], recorded, DeliveryOptions(allow_consent="unsubscribe"))
    assert (plan.upserts, plan.closed_ids) == ([], [refused.item_id])
    assert +plan.counts == {"attributes about consent left out (R19)": 1, "upserts with nothing new": 1}


def test_an_operation_is_read_only_where_something_is_sent() -> None:
    made = tables(event(set_={"plan": "pro"}), event("b", "u2"))
    states = dict(zip(made.customers["key"], map(unpack, made.customers["state"]), strict=True))
    slim = made._replace(customers=made.customers.drop(columns="operation"), events=made.events.drop(columns="operation"))
    assert items_of(planned(slim, states, sorted(made.events["ulid"]))) == []


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=30), st.lists(st.tuples(*[st.integers(0, 3)] * 2)))
def test_ids_that_share_their_first_half_are_told_apart(delivered: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    def packed(ids: list[tuple[int, int]]) -> Any:
        return np.array([first.to_bytes(8, "big") + last.to_bytes(8, "big") for first, last in ids], "S16")

    assert are_in(packed(sorted(set(delivered))), packed(asked)).tolist() == [one in delivered for one in asked]
