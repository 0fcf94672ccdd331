"""R1, R3 to R6 and R14: what is known at each event, and which events are sent."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.rules.classify import classify
from cio_pipeline.rules.facts import ORDER, in_order, learn
from cio_pipeline.rules.options import Options
from cio_pipeline_tests.rules.streams import NOBODY, event, frame, keys, known, outcomes

NOT_IDENTIFIED = "filtered: not identified yet (R5)"
PERSONLESS = "filtered: PostHog keeps no person for it (R5)"
PLACEHOLDER = "refused: distinct_id is a placeholder (R14)"
OUT_OF_TIME = "refused: time is before 1970 or after 9999 (R14)"
NO_EMAIL = "filtered: no email yet (R5)"
OFF_LIST = "filtered: not on the allowlist (R3)"


def test_r1_an_event_off_the_allowlist_still_adds_facts() -> None:
    stream = [event("$identify", at="2026-03-02T09:00Z"), event("order", at="2026-03-02T10:00Z")]
    assert outcomes(*stream, event_allowlist=("order",), anonymous_users="identified") == [OFF_LIST, "sent"]


def test_r1_the_last_valid_email_so_far_counts() -> None:
    stream = [
        event(at="2026-03-02T09:00Z"),
        event(at="2026-03-02T09:01Z", set_={"email": "One@example.com"}),
        event(at="2026-03-02T09:02Z", set_={"email": "nonsense"}),
        event(at="2026-03-02T09:03Z", set_={"email": "two@example.com"}),
        event(at="2026-03-02T09:04Z"),
    ]
    assert keys(*stream, identify_by_email=True) == [
        "id:u1",
        "email:one@example.com",
        "email:one@example.com",
        "email:two@example.com",
        "email:two@example.com",
    ]


def microseconds(time: str) -> int:
    return pd.Timestamp(time).value // 1000


def test_r1_learns_one_row_for_each_distinct_id_that_was_taught_about() -> None:
    stream = frame(
        event("$identify", "u1"),
        event("visit", "nobody"),
        event("visit", "u2", set_={"email": "a@example.com"}),
        event("visit", "u2", at="2026-03-02T11:00Z", set_={"email": "b@example.com"}),
        event("$identify", " "),
        event("visit", "u" * 151, set_={"email": "long@example.com"}),
        event("visit", "u3", raw='{"$set": {"\\u0065mail": "c@example.com"}}'),
        event("visit", "u4", raw='not JSON, though it names an "email"'),
    )
    learned = learn(stream)[0].sort_values("distinct_id")
    assert learned.to_numpy().tolist() == [
        ["u1", True, None, None],
        ["u2", False, "b@example.com", microseconds("2026-03-02T11:00Z")],
        ["u3", False, "c@example.com", microseconds("2026-03-02T10:00Z")],
    ]


def test_r1_takes_what_earlier_days_taught() -> None:
    earlier = known(u1=(True, "old@example.com"), u2=(False, None))
    stream = [event(distinct_id="u1"), event(distinct_id="u2")]
    assert outcomes(*stream, earlier=earlier, anonymous_users="identified") == ["sent", NOT_IDENTIFIED]
    assert outcomes(*stream, earlier=earlier, anonymous_users="emails") == ["sent", NO_EMAIL]
    assert keys(*stream, earlier=earlier, identify_by_email=True) == ["email:old@example.com", "id:u2"]


def test_r1_takes_the_email_from_the_person_where_attributes_come_from_there() -> None:
    stream = [event(person={"email": "p@example.com"}, set_={"email": "s@example.com"})]
    assert keys(*stream, identify_by_email=True) == ["email:p@example.com"]


def test_r1_the_distinct_id_is_the_email_until_one_is_set() -> None:
    own = "Me@example.com"
    stream = [event(distinct_id=own), event(distinct_id=own, at="2026-03-02T11:00Z", set_={"email": "a@example.com"})]
    assert keys(*stream, identify_by_email=True) == ["email:me@example.com", "email:a@example.com"]
    assert outcomes(*stream, anonymous_users="emails") == ["sent", "sent"]


def test_r1_ties_in_time_go_by_uuid() -> None:
    first, second = event(set_={"email": "first@example.com"}), event(set_={"email": "second@example.com"})
    assert learn(frame(first, second))[0]["email"].tolist() == ["second@example.com"]


@pytest.mark.parametrize(("name", "outcome"), [("order", "sent"), ("Order", OFF_LIST), (" order", OFF_LIST)])
def test_r3_the_allowlist_is_exact(name: str, outcome: str) -> None:
    assert outcomes(event(name), event_allowlist=("order",)) == [outcome]


def test_r3_no_allowlist_is_every_event() -> None:
    assert outcomes(event("anything")) == ["sent"]


@pytest.mark.parametrize("name", ["$create_alias", "$groupidentify"])
def test_r4_what_tells_of_ids_and_groups_is_never_sent(name: str) -> None:
    assert outcomes(event(name), event_allowlist=(name,)) == [f"filtered: {name} is never sent (R4)"]
    assert outcomes(event(name, "undefined")) == [f"filtered: {name} is never sent (R4)"]


def test_r5_passes_from_the_first_identify_on() -> None:
    stream = [event(at="2026-03-02T09:00Z"), event("$identify", at="2026-03-02T09:01Z"), event(at="2026-03-02T09:02Z")]
    assert outcomes(*stream, anonymous_users="identified") == [NOT_IDENTIFIED, "sent", "sent"]
    assert outcomes(*stream, anonymous_users="all") == ["sent"] * 3


@pytest.mark.parametrize(
    ("raw", "outcome"),
    [
        ('{"$process_person_profile": false}', PERSONLESS),
        ('{"\\u0024process_person_profile":false}', PERSONLESS),
        ('{"a":"\\ud800","$process_person_profile"\n:\tfalse}', PERSONLESS),
        ('{"$process_person_profile":true,"$process_person_profile":false}', PERSONLESS),
        ('{"$process_person_profile":false,"$process_person_profile":true}', "sent"),
        ('{"$process_person_profile": true}', "sent"),
        ('{"$process_person_profile": null}', "sent"),
        ('{"$process_person_profile": 0}', "sent"),
        ('{"$process_person_profile": "false"}', "sent"),
        ('{"nested": {"$process_person_profile": false}}', "sent"),
        ("{}", "sent"),
    ],
)
def test_r5_profiles_holds_back_the_events_for_which_posthog_keeps_no_person(raw: str, outcome: str) -> None:
    assert outcomes(event(raw=raw), anonymous_users="profiles") == [outcome]
    assert outcomes(event(raw=raw)) == ["sent"]


def test_r5_passes_a_distinct_id_that_is_an_email() -> None:
    assert outcomes(event(distinct_id="A@example.com"), anonymous_users="emails") == ["sent"]


def test_r6_the_key_is_the_email_where_the_distinct_id_is_one() -> None:
    assert keys(event(distinct_id="A@Example.com"), event(distinct_id="u1", set_={"email": "u@example.com"})) == [
        "email:a@example.com",
        "id:u1",
    ]


def test_r6_identify_by_email_makes_the_email_the_key_in_lower_case() -> None:
    stream = event(set_={"email": "A@Example.com"})
    assert keys(stream, identify_by_email=True) == ["email:a@example.com"]
    assert keys(stream) == ["id:u1"]
    assert keys(event(), identify_by_email=True) == ["id:u1"]


@pytest.mark.parametrize(
    ("distinct_id", "outcome"),
    [
        ("", "refused: distinct_id is blank (R14)"),
        (" \t", "refused: distinct_id is blank (R14)"),
        ("x" * 150, "sent"),
        ("x" * 151, "refused: distinct_id is over 150 bytes (R14)"),
        ("ü" * 75, "sent"),
        ("ü" * 76, "refused: distinct_id is over 150 bytes (R14)"),
        ("undefined", PLACEHOLDER),
        ("'Guest'", PLACEHOLDER),
        ('"0"', PLACEHOLDER),
        ("[object Object]", PLACEHOLDER),
        ("Null", "sent"),
        ("nan", "sent"),
        ("guest2", "sent"),
        ("'", "sent"),
    ],
)
def test_r14_refuses_a_distinct_id_that_customerio_cannot_take(distinct_id: str, outcome: str) -> None:
    assert outcomes(event(distinct_id=distinct_id)) == [outcome]


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        (" ", "refused: name is blank (R14)"),
        ("n" * 100, "sent"),
        ("  " + "n" * 100 + " ", "sent"),
        ("ü" * 51, "refused: name is over 100 bytes (R14)"),
    ],
)
def test_r14_refuses_a_name_that_customerio_cannot_take(name: str, outcome: str) -> None:
    assert outcomes(event(name)) == [outcome]


def test_r14_an_id_that_is_a_placeholder_adds_no_facts() -> None:
    stream = frame(event("$identify", "undefined", set_={"email": "alice@example.com"}), event("order", "undefined"))
    assert learn(stream)[0].empty
    assert outcomes(event("order", "null", set_={"email": "a@example.com"}), identify_by_email=True) == [PLACEHOLDER]


@pytest.mark.parametrize("uuid", ["", "none", "urn:uuid:018f3173-7000-7421-831e-e849e8bb6ffe"])
def test_r14_an_event_whose_uuid_is_none_is_refused(uuid: str) -> None:
    stream = frame(event()).assign(uuid=uuid)
    assert classify(stream, NOBODY, Options())["outcome"].tolist() == ["refused: uuid is not a UUID (R14)"]


@pytest.mark.parametrize(
    ("at", "outcome"),
    [
        ("0001-01-01T00:00Z", OUT_OF_TIME),
        ("1969-12-31T23:59:59.999999Z", OUT_OF_TIME),
        ("1970-01-01T00:00Z", "sent"),
        ("9999-12-31T23:59:59.999999Z", "sent"),
    ],
)
def test_r14_refuses_a_time_that_customerio_cannot_take(at: str, outcome: str) -> None:
    assert outcomes(event(at=at)) == [outcome]


ROWS = st.lists(st.tuples(st.integers(0, 3), *[st.sampled_from(["", "a", "B", "é"])] * 3), max_size=12)


@given(ROWS)
def test_events_are_in_the_order_of_time_and_then_of_their_texts(rows: list[tuple[int, str, str, str]]) -> None:
    events = pd.DataFrame(rows, columns=ORDER).astype(dict.fromkeys(ORDER[1:], "str"))
    events = events.assign(timestamp=pd.to_datetime(events["timestamp"].astype("int64"), unit="us", utc=True))
    assert [rows[row] for row in in_order(events)] == sorted(rows)


def test_r22_of_an_open_day_events_of_nobody_with_an_email_wait_where_emails_are_keys() -> None:
    stream = [
        event(at="2026-03-02T09:00Z"),
        event(at="2026-03-02T09:01Z", set_={"email": "one@example.com"}),
        event(distinct_id="two@example.com", at="2026-03-02T09:02Z"),
    ]
    waits = "filtered: its email may still come today (R22)"
    assert outcomes(*stream, day_is_open=True, identify_by_email=True) == [waits, "sent", "sent"]
    assert outcomes(*stream, day_is_open=True) == ["sent"] * 3
    assert outcomes(*stream, identify_by_email=True) == ["sent"] * 3
