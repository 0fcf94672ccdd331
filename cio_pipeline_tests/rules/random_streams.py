"""Random streams of events and random options, made of few people, names and moments so that they often meet."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from cio_pipeline.rules.options import Options
from cio_pipeline_tests.rules.reference import Event

HALF = re.compile("[\ud800-\udfff]")
DAY = 86_400_000_000
START = 1_772_409_600_000_000
"""2026-03-02, in microseconds."""

PLAIN_IDS = ["u1", "u2", "u3", "anon-1", "anon-2", "Me@Example.com"]
ODD_IDS = [
    "me@example.com",
    "",
    " ",
    "x" * 151,
    "ü" * 75,
    "null",
    "'guest'",
    "Undefined",
    "cio_1",
    "u1 ",
    "NaN",
    "a\u0000b",
    "用户",
]
PLAIN_NAMES = ["visit", "order", "$identify", "$identify", "$identify", "$set", "$pageview", "$screen", "$create_alias"]
PLAIN_NAMES += ["$groupidentify"]
ODD_NAMES = ["", " \t", " visit ", "Visit", "$pageview ", "n" * 101, "ü" * 51, "ü" * 50]
MOMENTS = [0, 1, 43_200_000_000, 43_200_000_001, 43_200_500_000, 50_000_000_000, DAY - 1_000_000, DAY - 1]

EMAILS = ["a@example.com", "A@Example.com", "b@example.com", "me@example.com", "me@example.com"]
NO_EMAILS = ["nobody", "", 7, None, "a\\b@example.com", "\ufeffa@example.com", '"quoted local"@example.com', ["a@example.com"]]
NO_EMAILS += ["x" * 1000 + "@example.com", "a@[192.0.2.7]", "A@EXAMPLE.COM\n"]
ATTRIBUTES = ["plan", "city", "$browser", "utm_source", "unsubscribed", "cio_subscription_preferences.topics.news"]
ODD_ATTRIBUTES = [
    "Unsubscribed ",
    "cio_subscription_preferences.other",
    "cio_subscription_preferences.topics.",
    "\ud800",
    "id",
    "cio_id",
    "identifier",
    "_update",
    "cio_relationships",
    "Email",
    "",
    "n" * 150,
    "n" * 151,
    "ü" * 76,
]
VALUES = ["pro", "free", 1, True, False, 1.0, {"k": ["v"]}]
TOPICS = {"news": False, "offers": True, "": False, "\udc00": False}
ODD_VALUES: list[Any] = [
    None,
    False,
    "TRUE",
    "1",
    "false",
    "half \ud83d",
    {"\ud83d": ["\ude00"]},
    "",
    "x" * 1001,
    "x" * 999 + "ü",
    ["x" * 996],
    ["x" * 997],
    2**64,
    10**1000,
    1.7e308,
    "\u0000",
    [],
    {},
]
TIMES = ["2020-05-06T07:08:09.5Z", 1588748889, 1588748889500, "1588748889", "2020-05-06", "2020-05-06T09:08:09+02:00"]
TIMES += ["2020-05-06 07:08", "2020-05-06T07:08:09-11:30", "1969-12-31T23:59:59.5Z"]
NO_TIMES: list[Any] = [
    None,
    "soon",
    True,
    "2020-02-30",
    {},
    -5.5,
    10**11,
    10**11 + 1,
    "12345678",
    12345678,
    10**13 - 1,
    10**13,
    1e9,
]
NO_TIMES += [1588748889.9, -1588748889, "1588748889.9", "+1588748889"]
NO_TIMES += ["2020-05-06T07:08:09+24:00", "2020-0506", "2020-05-06Z", "2020-05-06T07:08.5Z", "2020-5-6"]

UNREADABLE = [None, "", "[]", "{", '{"a":NaN}', '{"a":1e999}', '{"$anon_distinct_id":"\\ud800"}', '{"$set":{"plan":"\\udc00"}}']
UNREADABLE += ['{"$set":{"email":"b@example.com"},"a":"\\ud800"}', '{"$set":{"\\u0065mail":"b@example.com"}}']


def nested(levels: int) -> Any:
    """A list in a list, so many levels deep."""
    return [nested(levels - 1)] if levels > 1 else []


@dataclass(frozen=True)
class Stream:
    """Events of the days from 2026-03-02 on, and of the history before it."""

    events: list[Event]
    days: int


def _sometimes(plain: list[Any], odd: list[Any], hostile: bool) -> st.SearchStrategy[Any]:
    return st.sampled_from(plain * 3 + odd if hostile else plain)


def _given(hostile: bool) -> st.SearchStrategy[Any]:
    """A `$set`, or a person's properties."""
    described = st.dictionaries(
        _sometimes(ATTRIBUTES, ODD_ATTRIBUTES, hostile), _sometimes(VALUES, ODD_VALUES, hostile), max_size=3
    )
    known = st.fixed_dictionaries(
        {},
        optional={
            "email": _sometimes(EMAILS, NO_EMAILS, hostile),
            "created_at": _sometimes(TIMES, NO_TIMES, hostile),
            "cio_subscription_preferences": st.one_of(
                st.just("no object"),
                st.dictionaries(
                    st.sampled_from(["topics", "topics", "other"]), st.sampled_from([TOPICS, {"a": False}, 7]), max_size=2
                ),
            ),
        },
    )
    many = st.integers(0, 40).map(lambda first: {f"many {n}": n for n in range(first, first + 290)})
    crowd = st.sampled_from([False] * 6 + [hostile]).flatmap(lambda yes: many if yes else st.just({}))
    return st.builds(lambda *parts: {name: value for part in parts for name, value in part.items()}, crowd, described, known)


def _properties(ids: st.SearchStrategy[str], hostile: bool) -> st.SearchStrategy[dict[str, Any]]:
    given = _given(hostile)
    names = st.lists(
        _sometimes([*ATTRIBUTES, "created_at"], ["id", "email", 7, "n" * 151, "UNSUBSCRIBED", "\udfff"], hostile), max_size=2
    )
    as_keys = names.map(lambda found: {str(name): 1 for name in found})
    parts: dict[str, st.SearchStrategy[Any]] = {
        "$set": st.one_of(given, given, st.sampled_from([None, "text", []])) if hostile else given,
        "$unset": names | as_keys,
        "$anon_distinct_id": ids,
        "amount": st.sampled_from([1, 2.5]),
        "$process_person_profile": st.sampled_from([True, False]),
    }
    if hostile:
        parts["Reply_To"] = parts["from_address"] = st.just("other@example.com")
        parts["$set_once"] = st.just({"email": "once@example.com"})
        parts["halves"] = st.sampled_from(["\ud800", {"\udc00": 1}, ["whole \ud83d\ude00"]])
        parts["$process_person_profile"] = st.sampled_from([True, False, False, None, "false", 0])
        parts["deep"] = st.sampled_from([1, 198, 199, 200]).map(nested)
        parts["large"] = st.sampled_from([1, 31_600, 31_700, 31_800, 40_000, 99_900, 100_001]).map(lambda size: "x" * size)
    return st.fixed_dictionaries({}, optional=parts)


def _unescaped(value: Any) -> str:
    """As JSON text without escapes, but for halves of surrogate pairs, which no source can give otherwise."""
    text = json.dumps(value, ensure_ascii=False)
    return HALF.sub(lambda half: f"\\u{ord(half[0]):04x}", text)


@st.composite
def streams(draw: st.DrawFn, hostile: bool, seconds_apart: bool = False) -> Stream:
    """A stream over one to four days, with a history of two days before them; perhaps no two events in the same second."""
    days = draw(st.integers(1, 4))
    ids = _sometimes(PLAIN_IDS, ODD_IDS, hostile)
    properties, person = _properties(ids, hostile), _given(hostile)
    text = properties.map(json.dumps) | properties.map(_unescaped)
    event = st.tuples(
        st.integers(-2, days - 1),
        st.sampled_from(MOMENTS[:-2] if seconds_apart else MOMENTS),
        _sometimes(PLAIN_NAMES, ODD_NAMES, hostile),
        ids,
        st.one_of(text, text, st.sampled_from(UNREADABLE)) if hostile else text,
        st.one_of(st.none(), st.none(), person.map(json.dumps), *([st.sampled_from(UNREADABLE)] if hostile else [])),
        st.sampled_from([0, 0, 0, 1, 2]),
    )
    drawn = draw(st.lists(event, min_size=5, max_size=30))
    order = draw(st.permutations(range(len(drawn))))
    found: dict[tuple[str, ...], Event] = {}
    for number, (day, moment, name, who, *texts, shared) in zip(order, drawn, strict=True):
        at = START + day * DAY + moment + number * seconds_apart * 2_000_000
        made = Event(at, _uuid(number, shared), name, who, *texts)
        if day >= 0 or name in ("$identify", "$set"):
            found.setdefault(made.identity, made)
    return Stream(list(found.values()), days)


def _uuid(number: int, shared: int) -> str:
    """The uuid of an event of this number; some events share one (`shared` is not 0), as faulty clients make them do."""
    return str(uuid.UUID(int=shared or number + 3))


options = st.builds(
    Options,
    identify_by_email=st.booleans(),
    anonymous_users=st.sampled_from(["all", "profiles", "identified", "emails"]),
    event_allowlist=st.sampled_from([(), (), ("visit", "order"), ("$identify", "$pageview"), ("$create_alias", "visit")]),
    exclude_attributes=st.sampled_from([(), (), ("$*", "utm_*"), ("c*",), ("*",), ("[ep]*",)]),
    allow_delivery_overrides=st.booleans(),
    allow_consent=st.sampled_from(["No", "unsubscribe", "unsubscribe", "Yes"]),
    stitch_anonymous_days=st.sampled_from([0, 1, 2, 30]),
)
