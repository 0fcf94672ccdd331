"""What of the refused items is sent again, by what the day's tables say of them now."""

from __future__ import annotations

import json

import pandas as pd

from cio_pipeline.attribute_state import upsert_id
from cio_pipeline.customerio.redelivery import compare_with_tables
from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.rules.consent import AllowConsent
from cio_pipeline.state.refusals import Refusal
from cio_pipeline_tests.rules.streams import Frames, event, tables

NOBODY = Suppressed()


def refused_of(made: Frames) -> list[Refusal]:
    """All upserts and events of a day, as they were refused."""
    upserts = [
        Refusal(upsert_id(row["key"], row["part"]), "customer", "invalid", "", row["operation"], row["key"])
        for row in made.customers.to_dict("records")
    ]
    return upserts + [
        Refusal(row["ulid"], "event", "invalid", "", row["operation"], row["key"]) for row in made.events.to_dict("records")
    ]


def names(
    refused: list[Refusal], made: Frames, suppressed: Suppressed = NOBODY, allow_consent: AllowConsent = "unsubscribe"
) -> tuple[list[str], ...]:
    """The kinds of those that are unchanged, changed, gone and suppressed."""
    compared = compare_with_tables(refused, [made.shard], DeliveryOptions(suppressed, allow_consent=allow_consent))
    groups = (compared.unchanged, compared.changed, compared.gone, compared.suppressed)
    return tuple([refusal.kind for refusal in group] for group in groups)


def test_what_the_tables_still_have_is_sent_again() -> None:
    made = tables(event(set_={"plan": "pro"}), event("paid", "u2"))
    assert names(refused_of(made), made) == (["customer", "customer", "event", "event"], [], [], [])


def test_what_the_tables_have_otherwise_is_left_to_a_run_of_the_day() -> None:
    refused = refused_of(tables(event(set_={"plan": "pro"}, sum=1)))
    now = tables(event(set_={"plan": "free"}, sum=2))
    assert names(refused, now) == ([], ["customer", "event"], [], [])


def test_an_attribute_that_is_excluded_since_is_not_sent_again() -> None:
    refused = refused_of(tables(event(set_={"plan": "pro", "salary": 1})))
    now = tables(event(set_={"plan": "pro", "salary": 1}), exclude_attributes=("salary",))
    assert names(refused, now) == (["event"], ["customer"], [], [])


def test_what_redirects_deliveries_is_not_sent_again_once_that_is_forbidden() -> None:
    paid = event("paid", recipient="jane@example.com")
    refused = refused_of(tables(paid, allow_delivery_overrides=True))
    assert "recipient" in refused[-1].operation
    assert names(refused, tables(paid)) == (["customer"], ["event"], [], [])


def test_what_the_tables_no_longer_have_is_gone() -> None:
    refused = refused_of(tables(event("paid", "u2"), event("left", "u1")))
    now = tables(event("paid", "u2"), event("left", "u1"), event_allowlist=("paid",))
    assert names(refused, now) == (["customer", "event"], [], ["customer", "event"], [])


def test_attributes_that_r17_left_out_of_an_upsert_need_not_be_in_it() -> None:
    made = tables(event(set_={"plan": "pro", "city": "Bonn"}))
    [upsert, _] = refused_of(made)
    operation = json.loads(upsert.operation)
    del operation["attributes"]["city"]
    cut = Refusal(upsert.item_id, "customer", "invalid", "", json.dumps(operation), upsert.key)
    assert names([cut], made) == (["customer"], [], [], [])


def test_attributes_about_consent_are_compared_as_the_current_setting_lets_them_pass() -> None:
    given = event(set_={"plan": "pro", "unsubscribed": True})
    [upsert, _] = refused_of(tables(given))
    without = tables(given, allow_consent="No")
    assert "unsubscribed" in upsert.operation
    assert names([upsert], without, allow_consent="No") == (["customer"], [], [], [])
    assert names([upsert], without) == ([], ["customer"], [], [])
    topics = event(set_={"cio_subscription_preferences": {"topics": {"news": False}}})
    [upsert, _] = refused_of(tables(topics, allow_consent="Yes"))
    assert names([upsert], tables(topics)) == (["customer"], [], [], [])


def test_a_subscription_that_the_tables_no_longer_have_is_not_sent_again() -> None:
    subscribes = event(set_={"plan": "pro", "unsubscribed": False})
    [upsert, _] = refused_of(tables(subscribes, allow_consent="Yes"))
    excluded = tables(subscribes, allow_consent="Yes", exclude_attributes=("unsubscribed",))
    left = tables(subscribes, event("left", at="2026-03-02T11:00Z", set_={"unsubscribed": True}), allow_consent="Yes")
    for now in (excluded, left):
        assert names([upsert], now, allow_consent="Yes") == ([], ["customer"], [], [])


def test_somebody_suppressed_is_known_by_the_distinct_id_behind_the_key_in_the_tables() -> None:
    made = tables(event(set_={"email": "jane@example.com"}), identify_by_email=True)
    [_, refused] = refused_of(made)
    assert refused.key == "email:jane@example.com"
    assert names([refused], made, Suppressed(frozenset({"u1"}))) == ([], [], [], ["event"])
    assert names([refused], made, Suppressed(frozenset({"u2"}))) == (["event"], [], [], [])


def test_somebody_suppressed_whom_the_tables_no_longer_have_is_known_by_the_key() -> None:
    refused = [Refusal(number, "event", "invalid", "", "{}", f"id:u{number}") for number in ("1", "2")]
    empty = tables(event("paid", "u3"))
    compared = compare_with_tables(refused, [empty.shard], DeliveryOptions(Suppressed(frozenset({"u1"}))))
    assert (compared.suppressed, compared.gone) == (refused[:1], refused[1:])


LARGE = json.dumps({"$set": {f"a{n}": "x" * 900 for n in range(60)}})


def test_a_part_of_a_customer_that_no_upsert_has_any_more_is_gone() -> None:
    """Or it would stay open for good: no run sends an upsert with its id."""
    first, *others, _ = refused_of(tables(event(raw=LARGE)))
    now = tables(event(raw=LARGE), exclude_attributes=("a*",))
    assert (len(others), len(now.customers)) == (1, 1)
    assert names([first, *others], now) == ([], ["customer"], ["customer"], [])


def test_all_parts_of_a_customer_are_compared_with() -> None:
    made = tables(event(raw=LARGE))
    assert len(made.customers) > 1
    assert isinstance(made.customers, pd.DataFrame)
    upserts = ["customer"] * len(made.customers)
    assert names(refused_of(made), made) == ([*upserts, "event"], [], [], [])
