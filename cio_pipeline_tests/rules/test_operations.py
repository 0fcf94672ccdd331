"""R7 to R14: what is sent of a customer and of an event, to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cio_pipeline.attribute_state import name_hash, unpack
from cio_pipeline.json_text import TOO_DEEP
from cio_pipeline.rules.event_data import REPAIRED
from cio_pipeline.rules.limits import MAX_ITEM_BYTES
from cio_pipeline_tests.rules.streams import customers, event, known, reasons, sent, tables


@pytest.mark.parametrize("page", ["docs/rules.md", "README.md"])
def test_the_worked_case_in_the_docs_is_what_goes_out(page: str) -> None:
    stream = event(
        "some event", event_property="stays on the event", set_={"email": "test@example.com", "userProperty": "value"}
    )
    made = tables({**stream, "uuid": "019cadd9-8c00-7b1a-9c55-3f2f5a7d0e11"})
    text = (Path(__file__).parents[2] / page).read_text()
    assert text.partition("```json\n")[2].partition("```")[0].splitlines() == [
        *made.customers["operation"],
        *made.events["operation"],
    ]


def test_r7_the_last_value_by_time_wins_name_by_name() -> None:
    stream = [
        event(at="2026-03-02T10:00Z", set_={"plan": "free", "city": "Bonn"}, set_once_={"first": 1}),
        event(at="2026-03-02T12:00Z", set_={"plan": "pro"}),
        event(at="2026-03-02T11:00Z", set_={"plan": "trial"}),
    ]
    assert customers(*stream) == {"id:u1": {"plan": "pro", "city": "Bonn", "identifier": "u1"}}


@pytest.mark.parametrize("odd", [None, "text", ["a"], 7, True])
def test_r7_a_set_that_is_no_object_counts_as_absent(odd: Any) -> None:
    assert customers(event(set_=odd)) == {"id:u1": {"identifier": "u1"}}


def test_r7_two_distinct_ids_of_one_email_are_one_customer() -> None:
    stream = [
        event(distinct_id="u1", at="2026-03-02T10:00Z", set_={"email": "A@example.com", "plan": "free"}),
        event(distinct_id="u2", at="2026-03-02T11:00Z", set_={"email": "a@Example.com", "plan": "pro"}),
    ]
    assert customers(*stream, identify_by_email=True) == {
        "email:a@example.com": {"plan": "pro", "identifier": "u2", "email": "a@example.com"}
    }


def test_r7_the_email_so_far_is_kept_as_given_where_the_key_is_an_id() -> None:
    assert customers(event(), earlier=known(u1=(True, "Me@Example.com")))["id:u1"]["email"] == "Me@Example.com"


def test_r7_a_customer_comes_from_sent_events_only() -> None:
    stream = [event("$create_alias", set_={"a": 1}), event("visit", "u2", set_={"b": 2})]
    classified = tables(*stream)
    assert classified.customers["key"].tolist() == ["id:u2"]


@pytest.mark.parametrize(
    "name",
    [
        "id",
        "cio_id",
        "identifier",
        "anonymous_id",
        "_update",
        "_timestamp",
        "_created_in_customerio_at",
        "cio_relationships",
    ],
)
def test_r8_names_that_act_on_the_profile_are_not_taken(name: str) -> None:
    stream = event(set_={name: "x"}, unset_=[name])
    assert customers(stream) == {"id:u1": {"identifier": "u1"}}
    assert reasons(stream) == [("attribute", name, "has a special meaning in Customer.io (R8)")] * 2


def test_r9_created_at_is_seconds_or_left_out() -> None:
    assert customers(event(set_={"created_at": "2020-05-06T07:08:09Z"}))["id:u1"]["created_at"] == 1588748889
    assert "created_at" not in customers(event(set_={"created_at": "soon"}))["id:u1"]
    assert reasons(event(set_={"created_at": None})) == [("attribute", "created_at", "is not a time (R9)")]


def test_r2_an_invalid_email_is_left_out_and_counted() -> None:
    assert customers(event(set_={"email": "nonsense"})) == {"id:u1": {"identifier": "u1"}}
    assert reasons(event(set_={"email": "nonsense"})) == [("attribute", "email", "is not a valid email (R2)")]


@pytest.mark.parametrize(
    ("name", "value", "taken"),
    [
        ("n" * 150, 1, 1),
        ("n" * 151, 1, "left out"),
        ("text", "x" * 1000, "x" * 1000),
        ("text", "x" * 1001, "x" * 1000),
        ("text", "x" * 999 + "ü", "x" * 999),
        ("list", ["x" * 996], ["x" * 996]),
        ("list", ["x" * 997], "left out"),
        ("object", {"k": "x" * 1000}, "left out"),
        ("null", None, None),
        ("number", 1.5, 1.5),
        ("large", 10**999, 10**999),
        ("larger", 10**1000, "left out"),
        ("", "blank name", "blank name"),
    ],
)
def test_r10_limits_names_and_values_by_bytes(name: str, value: Any, taken: Any) -> None:
    assert customers(event(set_={name: value}))["id:u1"].get(name, "left out") == taken
    assert len(reasons(event(set_={name: value}))) == (taken != value)


def test_r10_keeps_300_attributes_the_important_ones_first() -> None:
    stream = event(set_={**{f"a{n}": n for n in range(400)}, "created_at": 500_000_000, "email": "a@example.com"})
    [attributes] = customers(stream).values()
    assert list(attributes) == ["email", "identifier", "created_at", *(f"a{n}" for n in range(297))]
    assert reasons(stream) == [("attribute", f"a{n}", "beyond 300 attributes (R10)") for n in range(297, 400)]


def test_r10_what_makes_somebody_hear_less_is_never_beyond_the_300_attributes() -> None:
    less = {"unsubscribed": True, "cio_subscription_preferences.topics.news": False}
    given = {**{f"a{n}": n for n in range(400)}, "created_at": 500_000_000, **less}
    for stream in ([event(set_=given)], [event(set_={f"a{n}": n for n in range(400)}), event("later", set_=less)]):
        [attributes] = customers(*stream).values()
        assert len(attributes) == 300
        assert {name: attributes.get(name) for name in less} == less
    more = {"cio_subscription_preferences": {"topics": {str(n): False for n in range(9)}}}
    assert sum("topics" in name for name in customers(event(set_={**given, **more}))["id:u1"]) == 10


def test_r10_a_customer_beyond_32000_bytes_is_upserted_in_parts() -> None:
    made = tables(event(set_={f"a{n}": "x" * 1000 for n in range(100)}))
    assert made.customers["part"].tolist() == [0, 1, 2, 3]
    assert max(len(operation) for operation in made.customers["operation"]) <= MAX_ITEM_BYTES
    assert made.customers["attributes"].sum() == 101


LONG_EMAIL = "x" * 988 + "@example.com"


def upserts(who: str, given: dict[str, str]) -> pd.DataFrame:
    """The upserts of a customer with this id or email."""
    by_email: dict[str, Any] = {"earlier": known(u1=(True, who)), "identify_by_email": True} if "@" in who else {}
    return tables(event(distinct_id="u1" if by_email else who, set_=given), **by_email).customers


@pytest.mark.parametrize("who", ["u1", "\x01" * 150, "\U0001f600" * 37, LONG_EMAIL, '"' * 988 + "@example.com"])
@pytest.mark.parametrize("size", [170, 1000])
def test_r10_no_upsert_exceeds_32000_bytes_whatever_its_identifier(who: str, size: int) -> None:
    made = upserts(who, {f"a{n:03}": "x" * size for n in range(250)})
    sizes = [len(operation.encode()) for operation in made["operation"]]
    assert max(sizes) <= MAX_ITEM_BYTES
    assert min(sizes[:-1]) > MAX_ITEM_BYTES - 500 - size - len('"a000":"",')
    assert made["attributes"].sum() == (252 if "@" in who else 251)


@pytest.mark.parametrize(("who", "largest"), [("u1", 31_499 + 102), ("x" * 397 + "@a.com", 32_000), (LONG_EMAIL, 32_000)])
def test_r10_attributes_up_to_31500_bytes_that_fit_are_in_one_upsert(who: str, largest: int) -> None:
    """Also those of identifiers that need no less room: other parts would have other states (R17)."""

    def sizes(text: int) -> list[int]:
        given = {f"a{n}": "x" * (text // 40 + (n < text % 40)) for n in range(40)}
        return [len(operation) for operation in upserts(who, given)["operation"]]

    [rest] = sizes(0)
    assert sizes(largest - rest) == [largest]
    assert len(sizes(largest - rest + 1)) == 2


def test_r10_an_email_over_1000_bytes_is_left_out_whole() -> None:
    long = "x" * 1000 + "@example.com"
    assert customers(event(set_={"email": long})) == {"id:u1": {"identifier": "u1"}}
    assert reasons(event(set_={"email": long})) == [("attribute", "email", "is not a valid email (R2)")]


@pytest.mark.parametrize("unset", [["plan", 7, None], {"plan": ""}])
def test_r11_unset_clears_in_time_order_with_set(unset: Any) -> None:
    before, after = event(at="2026-03-02T10:00Z", set_={"plan": "pro"}), event(at="2026-03-02T11:00Z", unset_=unset)
    again = event(at="2026-03-02T12:00Z", set_={"plan": "free"})
    assert customers(before, after)["id:u1"]["plan"] is None
    assert customers(before, after, again)["id:u1"]["plan"] == "free"
    assert "$unset" not in sent(after)[0]["attributes"]


def test_r11_unset_leaves_the_email_so_far_alone() -> None:
    stream = event(unset_=["email"])
    assert customers(stream) == {"id:u1": {"identifier": "u1"}}
    assert customers(stream, earlier=known(u1=(True, "a@example.com")))["id:u1"]["email"] == "a@example.com"
    assert reasons(stream) == [("attribute", "email", "is always the last valid one (R7)")]


def test_r11_unset_that_is_neither_array_nor_object_is_ignored() -> None:
    assert customers(event(unset_="plan")) == {"id:u1": {"identifier": "u1"}}


@pytest.mark.parametrize(("name", "action"), [("$pageview", "page"), ("$screen", "screen"), (" order ", "event")])
def test_r12_name_type_and_whole_seconds(name: str, action: str) -> None:
    [operation] = sent(event(name, at="2026-03-02T10:00:00.999999Z", set_={"a": 1}, set_once_={"b": 1}, unset_=["c"], d=1))
    assert (operation["name"], operation["action"], operation["timestamp"]) == (name.strip(), action, 1772445600)
    assert operation["id"].startswith("0000000000")
    assert operation["attributes"] == {"d": 1}


def test_r12_data_keeps_every_value_as_it_was() -> None:
    raw = '{"big":123456789012345678901234567890,"float":1.0,"tiny":1e-7,"nested":{"a":[null,true,"\\u0000 \\ud83d\\ude00"]}}'
    [operation] = tables(event(raw=raw)).events["operation"]
    data = json.loads(operation)["attributes"]
    assert data == json.loads(raw)
    assert data["big"] == 123456789012345678901234567890


@pytest.mark.parametrize("digits", [19, 20, 4299, 4300])
def test_r12_a_long_integer_goes_out_as_it_is(digits: int) -> None:
    raw = '{"a":-1' + "0" * (digits - 1) + "}"
    [operation] = tables(event(raw=raw)).events["operation"]
    assert raw[1:-1] in str(operation)


def test_r14_nesting_of_200_levels_goes_out_as_it_is_and_of_more_is_refused() -> None:
    for before, after in (('{"a":', "}"), ('{"a":[', "]}")):
        levels = 200 // len(after)
        raw = before * levels + "1" + after * levels
        [operation] = tables(event(raw=raw)).events["operation"]
        assert json.loads(operation)["attributes"] == json.loads(raw)
        assert reasons(event(raw='{"a":' + raw + "}")) == [("event", "signed up", f"{TOO_DEEP} (R14)")]
        assert reasons(event(raw='{"$set":' + raw + "}")) == [("event", "signed up", f"{TOO_DEEP} (R14)")]


def test_r13_names_that_would_redirect_mail_are_left_out_of_data() -> None:
    stream = event(recipient="x@example.com", From_Address="y", REPLY_TO="z", recipients="kept")
    assert sent(stream)[0]["attributes"] == {"recipients": "kept"}
    assert [name for _, name, _ in reasons(stream)] == ["recipient", "From_Address", "REPLY_TO"]
    assert len(sent(stream, allow_delivery_overrides=True)[0]["attributes"]) == 4


def _data_of(size: int) -> dict[str, Any]:
    """An event whose data is exactly so many bytes of compact JSON."""
    return event("big", d="x" * (size - len('{"d":""}')))


def test_r14_data_over_100000_bytes_is_refused() -> None:
    assert tables(_data_of(100_000)).events["call"].tolist() == ["event"]
    made = tables(_data_of(100_001))
    assert made.events.empty
    assert made.customers.empty
    assert made.rejects["reason"].tolist() == ["data is over 100000 bytes (R14)"]


def test_r14_an_item_over_32000_bytes_goes_by_the_v1_call() -> None:
    overhead = len(str(tables(_data_of(1000)).events["operation"][0]).encode()) - 1000
    assert tables(_data_of(32_000 - overhead)).events["call"].tolist() == ["batch"]
    [row] = tables(_data_of(32_001 - overhead)).events.itertuples()
    assert row.call == "event"
    body = json.loads(str(row.operation))
    assert list(body) == ["id", "name", "timestamp", "type", "data"]


@pytest.mark.parametrize("distinct_id", ["cio_123", ".", "..", "jane@localhost", "cio_1@example.com", '"a b"@example.com'])
def test_r14_an_id_that_means_something_else_in_the_v1_path_is_refused(distinct_id: str) -> None:
    large = event("big", distinct_id, d="x" * 40_000)
    assert [what for what, _, _ in reasons(large)] == ["event"]
    assert len(sent(event("small", distinct_id))) == 1


@pytest.mark.parametrize(
    ("person", "reason"),
    [
        ("[]", "properties are not a JSON object (R7)"),
        ('{"plan":NaN}', "a number that JSON cannot express (R7)"),
        ('{"a":' * 201 + "1" + "}" * 201, f"{TOO_DEEP} (R7)"),
    ],
)
def test_r7_properties_of_a_person_that_are_no_object_count_as_absent(person: str, reason: str) -> None:
    stream = {**event(d=1), "person_properties": person}
    assert len(sent(stream)) == 1
    assert customers(stream) == {"id:u1": {"identifier": "u1"}}
    assert reasons(stream) == [("attribute", "person_properties", reason)]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("[1]", "properties are not a JSON object (R14)"),
        ("{", "properties are not JSON (R14)"),
        ('{"a":NaN}', "a number that JSON cannot express (R14)"),
        ('{"a":' + "1" * 4301 + "}", "a number that JSON cannot express (R14)"),
        ('{"$set":{"a":-' + "1" * 90_000 + "}}", "a number that JSON cannot express (R14)"),
        ('{"a":1e999}', "a number that JSON cannot express (R14)"),
        ('{"a":12345678901234567890,"b":[-Infinity]}', "a number that JSON cannot express (R14)"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, f"{TOO_DEEP} (R14)"),
    ],
)
def test_properties_that_cannot_be_sent_are_refused_with_a_reason(raw: str, reason: str) -> None:
    assert reasons(event(raw=raw)) == [("event", "signed up", reason)]


@pytest.mark.parametrize("depth", [201, 253, 254, 300, *range(900, 1030, 5), 3000, 20_000])
def test_r14_deeper_nesting_is_refused(depth: int) -> None:
    refused = [("event", "signed up", f"{TOO_DEEP} (R14)")]
    assert reasons(event(raw='{"a":' * depth + "1" + "}" * depth)) == refused
    assert reasons(event(raw='{"$set":{"a":' + "[" * depth + "]" * depth + "}}")) == refused


def test_half_a_surrogate_pair_becomes_u_fffd_and_is_counted() -> None:
    stream = event(
        raw='{"a":"x\\ud800","b\\udc00":[{"\\ud83d":1}],"pair":"\\ud83d\\ude00",'
        '"$set":{"plan":"\\ude00\\ud83d","whole":1,"big":12345678901234567890},"$set_once":{"c":"\\ud800"},"$unset":["x\\ud800","y"]}'
    )
    assert sent(stream)[0]["attributes"] == {"a": "x\ufffd", "b\ufffd": [{"\ufffd": 1}], "pair": "\U0001f600"}
    assert customers(stream)["id:u1"] == {
        **{"plan": "\ufffd\ufffd", "whole": 1, "big": 12345678901234567890, "x\ufffd": None, "y": None},
        "identifier": "u1",
    }
    assert reasons(stream) == [
        ("attribute", "plan", REPAIRED),
        ("attribute", "x\ufffd", REPAIRED),
        ("data", "a", REPAIRED),
        ("data", "b\ufffd", REPAIRED),
    ]
    assert reasons(stream, exclude_attributes=("*",)) == [("data", "a", REPAIRED), ("data", "b\ufffd", REPAIRED)]


def test_half_a_surrogate_pair_of_a_person_costs_one_character() -> None:
    stream = {**event(d=1, set_={"gone": "\ud800"}), "person_properties": '{"plan":"pro","city":"\\ud83d"}'}
    assert customers(stream) == {"id:u1": {"plan": "pro", "city": "\ufffd", "identifier": "u1"}}
    assert reasons(stream) == [("attribute", "city", REPAIRED)]


def test_r2_an_email_with_half_a_surrogate_pair_is_the_same_email_wherever_it_is_read() -> None:
    [[key, attributes]] = customers(event(set_={"email": "a\ud800@example.com"}), identify_by_email=True).items()
    assert (key, attributes["email"]) == ("email:a\ufffd@example.com", "a\ufffd@example.com")


LESS: dict[str, Any] = {
    "unsubscribed": True,
    "Unsubscribed": 1,
    " UNSUBSCRIBED\t": "True",
    "unsubscribed ": "1",
    "cio_subscription_preferences.topics.news": False,
    "CIO_subscription_preferences.topics.a.b ": False,
}
NOT_YES: list[Any] = [False, 0, 2, None, "false", "0", "yes", "", [], {}, "true ", 1.5]
NOT_NO: list[Any] = [True, None, 0, "false", 1]
NO_TOPICS: list[Any] = [None, {}, "{}", False, {"topics": {}}, {"topics": {"a": True}}, {"topics": [False]}]
MORE = [
    *[(name, value) for name in ("unsubscribed", "\u00a0UNSUBSCRIBED ") for value in NOT_YES],
    *[("Cio_Subscription_Preferences.Topics.news", value) for value in NOT_NO],
    *[(name, value) for name in ("cio_subscription_preferences", "CIO_SUBSCRIPTION_PREFERENCES ") for value in NO_TOPICS],
    *[(f"cio_subscription_preferences.{rest}", False) for rest in ("topics", "topics.", "other", "")],
]
CONSENT = "is about consent (R19)"


def test_r19_what_makes_somebody_hear_less_passes() -> None:
    assert customers(event(set_=LESS)) == {"id:u1": {**LESS, "identifier": "u1"}}
    assert customers(event(person=LESS)) == {"id:u1": {**LESS, "identifier": "u1"}}
    assert reasons(event(set_=LESS)) == []


@pytest.mark.parametrize(("name", "value"), MORE)
def test_r19_all_else_about_consent_is_left_out_and_counted(name: str, value: Any) -> None:
    for stream in (event(set_={name: value, "plan": "pro"}), event(person={name: value, "plan": "pro"})):
        assert customers(stream) == {"id:u1": {"plan": "pro", "identifier": "u1"}}
        assert reasons(stream) == [("attribute", name, CONSENT)]
        assert reasons(stream, exclude_attributes=(name,)) == []
        assert customers(stream, allow_consent="Yes") == {"id:u1": {name: value, "plan": "pro", "identifier": "u1"}}


def test_r19_topics_that_are_false_come_out_of_an_object_one_by_one() -> None:
    topics = {"news": False, "offers": True, "": False, "n" * 150: False}
    stream = event(set_={" cio_subscription_preferences": {"topics": topics}})
    assert customers(stream)["id:u1"] == {"cio_subscription_preferences.topics.news": False, "identifier": "u1"}
    assert reasons(stream) == [
        ("attribute", " cio_subscription_preferences", CONSENT),
        ("attribute", "cio_subscription_preferences.topics." + "n" * 150, "name is over 150 bytes (R10)"),
    ]
    assert reasons(event(set_={"cio_subscription_preferences": {"topics": {"a": False, "b": False}}})) == []
    assert reasons(event(set_={"cio_subscription_preferences": {"topics": {"a": False, "b": 0}}})) != []


@pytest.mark.parametrize("name", ["unsubscribed", "Unsubscribed ", "cio_subscription_preferences", *LESS])
def test_r19_unset_does_not_clear_what_somebody_wants_to_receive(name: str) -> None:
    for stream in (event(unset_=[name]), event(unset_={name: 1})):
        assert customers(stream) == {"id:u1": {"identifier": "u1"}}
        assert reasons(stream) == [("attribute", name, CONSENT)]
        assert customers(stream, allow_consent="Yes") == {"id:u1": {name: None, "identifier": "u1"}}


def test_r19_no_leaves_all_of_it_out() -> None:
    given = {**LESS, "cio_subscription_preferences": {"topics": {"a": False}}}
    assert customers(event(set_=given), allow_consent="No") == {"id:u1": {"identifier": "u1"}}
    assert reasons(event(set_=given), allow_consent="No") == [("attribute", name, CONSENT) for name in given]


def test_attributes_named_email_in_another_case_are_told() -> None:
    stream = [
        event(set_={"Email": "a@example.com", "EMAIL": 7, "email": "b@example.com"}),
        event(set_={"e-mail": 1, 'x"EMAIL': 2, "emails": 3}),
    ]
    assert tables(*stream).emails_in_another_case == 2
    assert tables(*stream, exclude_attributes=("E*",)).emails_in_another_case == 0


def test_what_posthog_keeps_no_person_for_is_told_of_each_event() -> None:
    personless: dict[str, Any] = {"$process_person_profile": False}
    stream = [event(**personless), event(at="2026-03-02T11:00Z")]
    assert tables(*stream).events["personless"].tolist() == [True, False]


@pytest.mark.parametrize("absent", [None, float("nan"), ""])
def test_absent_properties_are_an_empty_object(absent: Any) -> None:
    assert sent({**event(), "properties": absent})[0]["attributes"] == {}
    assert customers({**event(), "person_properties": absent}) == {"id:u1": {"identifier": "u1"}}


def test_attributes_can_be_left_out_by_name() -> None:
    stream = event(set_={"$browser": "x", "utm_source": "y", "plan": "pro"}, unset_=["utm_medium"])
    assert customers(stream, exclude_attributes=("$*", "utm_*")) == {"id:u1": {"plan": "pro", "identifier": "u1"}}


def test_attributes_can_come_from_the_person() -> None:
    stream = event(person={"plan": "pro", "email": "p@example.com"}, set_={"plan": "free"})
    assert customers(stream) == {"id:u1": {"plan": "pro", "identifier": "u1", "email": "p@example.com"}}


def test_r17_an_upsert_carries_the_time_of_its_newest_attribute() -> None:
    [row] = tables(event(at="2026-03-02T10:00:00.5Z", set_={"a": 1}), event(at="2026-03-02T11:00:00.9Z")).customers.itertuples()
    assert json.loads(str(row.operation))["timestamp"] == 1772449200
    assert {name: time for name, (_, time) in unpack(bytes(row.state)).items()} == {  # type: ignore[arg-type]
        name_hash("identifier"): 1772449200,
        name_hash("a"): 1772445600,
    }
