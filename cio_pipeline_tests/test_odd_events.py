"""No event stops its day, whatever is in it: it is sent, filtered or refused (R15), and the events beside it are sent."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.pipeline.accounting import discrepancies
from cio_pipeline.rules.options import Options
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.examples import examples
from cio_pipeline_tests.rules.streams import event, frame

MONDAY = "2026-03-02"
UUID = "018f3173-7000-7421-831e-e849e8bb6ffe"
GOOD = ["good", "bystander"]

NUMBERS = ["NaN", "Infinity", "-Infinity", "-0", "-0.0", "1e400", "-1e400", "1e-400", "9" * 19, "9" * 20, "9" * 5000]
NUMBERS += ["-" + "9" * 5000, "9" * 5000 + ".5", "1E5", "0.1" + "0" * 5000, "9007199254740993", "18446744073709551616"]
TEXTS = [
    '""',
    '" "',
    '"\\u0000"',
    '"\\ud800"',
    '"\\udc00\\ud800"',
    '"\\ud83d\\ude00"',
    '"a@\\ud800.com"',
    '"\ufeff"',
    '"\u2028"',
]
TEXTS += ['"' + "\\ud800" * 200 + '"']
NESTED = ["[" * levels + "]" * levels for levels in (199, 200, 201, 253, 254, 255, 1000, 1024, 10_000)]
NESTED += ['{"":' * levels + "0" + "}" * levels for levels in (199, 200, 201, 1000, 10_000)]
OBJECTS = [
    '{"":1}',
    '{"a":1,"a":2}',
    '{"\\ud800":1,"\\udc00":2}',
    '{"\\u0000":1}',
    '{"email":{}}',
    '{"topics":{"":false}}',
    "{}",
]
OBJECTS += ["[]", '["",null,{},"\\ud800"]', "true", "false", "null"]
VALUES = [*NUMBERS, *TEXTS, *NESTED, *OBJECTS]

SPECIAL = ["$set", "$set_once", "$unset", "$anon_distinct_id", "$process_person_profile", "recipient", "", "x"]
GIVEN = [
    "email",
    "created_at",
    "unsubscribed",
    "cio_subscription_preferences",
    "cio_subscription_preferences.topics.a",
    "id",
    "",
]

LARGE = [json.dumps("x" * 1_000_000), json.dumps("ü" * 500_000), json.dumps("ü" * 500_000, ensure_ascii=False)]
WHOLE = [*VALUES, *LARGE, *(f'{{"$set":{{"x":{text}}}}}' for text in LARGE), *(f'{{"x":{text}}}' for text in LARGE)]
WHOLE += ["", "{", "}", "nonsense", "\x00", '{"a":1}x', '{"a":01}', "{'a':1}", "\ufeff{}", "[" * 100_000, '{"a":' * 100_000]


def texts() -> Iterator[str]:
    """Properties with an odd value in every place where a rule looks."""
    yield from WHOLE
    for value in VALUES:
        yield from (f"{{{json.dumps(name)}:{value}}}" for name in SPECIAL)
        yield from (f'{{"$set":{{{json.dumps(name)}:{value}}}}}' for name in GIVEN)


def derived(folder: str, *events: dict[str, Any], **options: Any) -> Days:
    """A day with these events and two good ones."""
    good = [event(name, "u1", at=f"{MONDAY}T12:00Z", set_={"email": "a@example.com"}) for name in GOOD]
    product = Days(folder, Options(**options))
    product.extract(MONDAY, frame(*events, event("$identify", "u1", at=f"{MONDAY}T10:00Z"), *good), shards=2)
    product.learn(MONDAY)
    day_counts = product.derive(MONDAY)
    assert day_counts.outcomes.total() == product.tables.version("posthog_events", MONDAY).rows
    sent = product.events(MONDAY)
    assert day_counts.outcomes["sent"] == product.tables.version("events", MONDAY).rows == len(sent)
    assert set(GOOD) <= {event["name"] for event in sent}
    assert product.customers(MONDAY)
    return product


def odd(number: int, text: str, name: str = "odd", **fields: Any) -> dict[str, Any]:
    """An event of its own person, or an `$identify` by which others may be named."""
    return {**event(name, f"odd-{number}", at=f"{MONDAY}T11:00Z", raw=text), **fields}


def test_odd_properties_stop_no_day(tmp_path: Path) -> None:
    events = [
        odd(number, text, name) for number, text in enumerate(texts()) for name in ("odd", "$identify")[: 1 + ("$anon" in text)]
    ]
    derived(str(tmp_path), *events, identify_by_email=True, stitch_anonymous_days=7, anonymous_users="profiles")


def test_odd_properties_of_a_person_refuse_no_event(tmp_path: Path) -> None:
    events = [odd(number, "{}", person_properties=text) for number, text in enumerate(WHOLE)]
    events += [odd(len(WHOLE) + number, "{}", person_properties=f'{{"a":{value}}}') for number, value in enumerate(VALUES)]
    product = derived(str(tmp_path), *events)
    assert product.counts_by_day[MONDAY].outcomes["sent"] == len(events) + 1 + len(GOOD)


@pytest.mark.parametrize("field", ["event", "distinct_id", "uuid"])
def test_odd_texts_stop_no_day(tmp_path: Path, field: str) -> None:
    values = ["", " ", "\x00", "\x1f\x85", "\ufeff", "\u200b", "\u2028", "\ufffd", "x" * 1_000_000, "ü" * 76, "a\x00b", "cio_1"]
    values += ["[object Object]", "$identify", "$groupidentify", f"urn:uuid:{UUID}", UUID.upper(), UUID.replace("-", ""), "{}"]
    values += [".", "'", '"', "\\"]
    events = [{**odd(number, "{}"), field: value} for number, value in enumerate(values) if value or field != "uuid"]
    events += [
        {**odd(100 + number, '{"$anon_distinct_id":"u1"}', "$identify"), field: value}
        for number, value in enumerate(values[1:])
    ]
    derived(str(tmp_path), *events, anonymous_users="identified", stitch_anonymous_days=1, event_allowlist=())


TIMES = [
    "0001-01-01T00:00Z",
    "1677-09-21T00:12:43Z",
    "1969-12-31T23:59:59.999999Z",
    "1970-01-01T00:00Z",
    "2038-01-19T03:14:08Z",
]
TIMES += ["2262-04-11T23:47:17Z", "9999-12-31T23:59:59.999999Z", f"{MONDAY}T00:00Z", f"{MONDAY}T23:59:59.999999Z"]


@pytest.mark.parametrize("name", ["odd", "$identify"])
def test_odd_times_stop_no_day(tmp_path: Path, name: str) -> None:
    named = '{"$anon_distinct_id":"u1","$set":{"email":"b@example.com"}}'
    events = [odd(number, named, name, timestamp=pd.Timestamp(at).as_unit("us")) for number, at in enumerate(TIMES)]
    product = derived(str(tmp_path), *events, identify_by_email=True, stitch_anonymous_days=30, anonymous_users="emails")
    refused = {
        outcome: count for outcome, count in product.counts_by_day[MONDAY].outcomes.items() if outcome.startswith("refused")
    }
    assert refused == {"refused: time is before 1970 or after 9999 (R14)": 3}


@pytest.mark.parametrize("at", TIMES[:3])
def test_r15_holds_for_an_event_without_a_time_that_can_be_read(tmp_path: Path, at: str) -> None:
    """Its time then is the year 1, or whatever before 1970 it says."""
    product = derived(str(tmp_path), odd(1, "{}", timestamp=pd.Timestamp(at).as_unit("us")))
    assert product.counts_by_day[MONDAY].outcomes["refused: time is before 1970 or after 9999 (R14)"] == 1
    assert discrepancies(MONDAY, product.counts_by_day[MONDAY], product.tables) == []


characters = st.characters(max_codepoint=0x10FFFF, exclude_categories=[])
keys = st.sampled_from([*SPECIAL, *GIVEN, "topics", "Recipient"]) | st.text(characters, max_size=3)
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(characters, max_size=5) | st.sampled_from(["1", "true"])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
jsons = st.dictionaries(keys, values, max_size=5).map(json.dumps) | values.map(json.dumps)
broken = st.builds(
    lambda text, at, by: text[:at] + by + text[at:], jsons, st.integers(0, 60), st.sampled_from('"\\{}[],:0e-u\x00')
)


@examples(8)
@given(
    texts=st.lists(jsons | broken, min_size=5, max_size=30),
    options=st.fixed_dictionaries(
        {
            "identify_by_email": st.booleans(),
            "anonymous_users": st.sampled_from(["all", "profiles", "emails"]),
            "allow_consent": st.sampled_from(["No", "unsubscribe", "Yes"]),
            "stitch_anonymous_days": st.sampled_from([0, 3]),
        }
    ),
)
def test_no_json_stops_a_day(texts: list[str], options: dict[str, Any]) -> None:
    events = [odd(number, text, name) for number, text in enumerate(texts) for name in ("odd", "$identify")]
    events += [odd(number, "{}", person_properties=text) for number, text in enumerate(texts)]
    with tempfile.TemporaryDirectory() as folder:
        derived(folder, *events, **options)
