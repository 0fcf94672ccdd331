"""What the documented connector's plugin did, case by case, and what this connector does with the same events.

Each case says whether that is the same, or on purpose not. How the plugin met Customer.io's answers (set-up, retries) has its
counterpart in the tests of `customerio/`.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from cio_pipeline_tests.rules.streams import customers, event, outcomes, sent, tables

SAME = "same"
VISIT = 'id:u1 event "visit" {}'
BARE = 'id:u1 has {"identifier": "u1"}'
A = "a@example.com"


def at(minute: int, name: str = "visit", distinct_id: str = "u1", **properties: Any) -> dict[str, Any]:
    return event(name, distinct_id, at=f"2026-03-02T10:{minute:02d}Z", **properties)


class Case(NamedTuple):
    """plugin: what its requests did; ours: all that goes out, is held back or left out; verdict: `same`, or why not."""

    situation: str
    events: list[dict[str, Any]]
    options: dict[str, Any]
    plugin: str
    ours: list[str]
    verdict: str


CASES = [
    Case(
        "two events of a person",
        [at(1, set_={"plan": "free"}), at(2, set_={"plan": "pro"})],
        {},
        "a PUT and a POST for each event: plan free, then pro",
        ['id:u1 has {"identifier": "u1", "plan": "pro"}', VISIT, VISIT],
        "different on purpose: R7, one upsert a day with the last values",
    ),
    Case(
        "an event that is not on the allowlist",
        [at(1, "other"), at(2)],
        {"event_allowlist": ("visit",)},
        "nothing for it",
        ["filtered: not on the allowlist (R3)", BARE, VISIT],
        SAME,
    ),
    Case(
        "the allowlist and another case of the name",
        [at(1, "Visit")],
        {"event_allowlist": ("visit",)},
        "nothing: exact names",
        ["filtered: not on the allowlist (R3)"],
        SAME,
    ),
    Case(
        "an allowlist without $identify, only identified users",
        [at(1, "$identify"), at(2)],
        {"event_allowlist": ("visit",), "anonymous_users": "identified"},
        "nothing, ever: an event off the allowlist left no status",
        ["filtered: not on the allowlist (R3)", BARE, VISIT],
        "different on purpose: R1, every event adds facts",
    ),
    Case(
        "$create_alias",
        [at(1, "$create_alias", set_={"plan": "pro"})],
        {},
        "nothing",
        ["filtered: $create_alias is never sent (R4)"],
        SAME,
    ),
    Case(
        "only users with emails: before and after the email is known",
        [at(1), at(2, set_={"email": A}), at(3)],
        {"anonymous_users": "emails"},
        "passes from the event with the email on",
        ["filtered: no email yet (R5)", 'id:u1 has {"email": "a@example.com", "identifier": "u1"}', VISIT, VISIT],
        SAME,
    ),
    Case(
        "only users with emails: an event off the allowlist brings the email",
        [at(1, "other", set_={"email": A}), at(2)],
        {"anonymous_users": "emails", "event_allowlist": ("visit",)},
        "nothing: an event off the allowlist left no status",
        ["filtered: not on the allowlist (R3)", 'id:u1 has {"email": "a@example.com", "identifier": "u1"}', VISIT],
        "different on purpose: R1, every event adds facts",
    ),
    Case(
        "only identified users: before and after the $identify",
        [at(1), at(2, "$identify"), at(3)],
        {"anonymous_users": "identified"},
        "passes from the first $identify on, in the order of arrival",
        ["filtered: not identified yet (R5)", BARE, 'id:u1 event "$identify" {}', VISIT],
        "same, but in the order of time; R16 can send the earlier ones later",
    ),
    Case(
        "only identified users: another distinct_id of the same person",
        [at(1, "$identify", "u1"), at(2, distinct_id="u2")],
        {"anonymous_users": "identified"},
        "each distinct_id has its own status",
        ["filtered: not identified yet (R5)", BARE, 'id:u1 event "$identify" {}'],
        SAME,
    ),
    Case(
        "attributes: $set_once and $unset",
        [at(1, set_={"plan": "pro"}), at(2, set_once_={"first": 1}, unset_=["plan"])],
        {},
        "$set_once was not used; $unset was ignored and sent in the event's data",
        ['id:u1 has {"identifier": "u1", "plan": null}', VISIT, VISIT],
        "different on purpose: R11 clears what is unset; $set_once is not used either",
    ),
    Case(
        "_update",
        [at(1, set_={"_update": "mine"})],
        {},
        "_update: whether the person was seen before, so that a person was not created whose first event was filtered",
        ["left out: _update has a special meaning in Customer.io (R8)", BARE, VISIT],
        "different on purpose: R7 and R8, an upsert creates",
    ),
    Case(
        "$set has an identifier",
        [at(1, set_={"identifier": "other"})],
        {},
        "its own identifier, the distinct_id, overwrote it",
        ["left out: identifier has a special meaning in Customer.io (R8)", BARE, VISIT],
        SAME,
    ),
    Case(
        "$set has id and cio_id",
        [at(1, set_={"id": "other", "cio_id": "b501"})],
        {},
        "passed on: Customer.io took them for a change of identifiers",
        [
            "left out: id has a special meaning in Customer.io (R8)",
            "left out: cio_id has a special meaning in Customer.io (R8)",
            BARE,
            VISIT,
        ],
        "different on purpose: R8",
    ),
    Case(
        "created_at as ISO text with a fraction",
        [at(1, set_={"created_at": "2020-05-06T07:08:09.500Z"})],
        {},
        "1588748889.5",
        ['id:u1 has {"created_at": 1588748889, "identifier": "u1"}', VISIT],
        "different on purpose: R9, whole seconds",
    ),
    Case(
        "created_at as a date",
        [at(1, set_={"created_at": "2020-05-06"})],
        {},
        "midnight UTC: 1588723200",
        ['id:u1 has {"created_at": 1588723200, "identifier": "u1"}', VISIT],
        SAME,
    ),
    *(
        Case(
            f"created_at as {given!r}",
            [at(1, set_={"created_at": given})],
            {},
            "null",
            ['id:u1 has {"created_at": 1588748889, "identifier": "u1"}', VISIT],
            "different on purpose: R9 reads numbers and digits",
        )
        for given in (1588748889, 1588748889500, "1588748889", "1588748889500")
    ),
    *(
        Case(
            f"created_at as {given!r}",
            [at(1, set_={"created_at": given})],
            {},
            "null",
            ["left out: created_at is not a time (R9)", BARE, VISIT],
            "different on purpose: R9, left out, with a row in rejects",
        )
        for given in ("soon", None)
    ),
    Case(
        "created_at as the number 2020",
        [at(1, set_={"created_at": 2020})],
        {},
        "the year 2020",
        ["left out: created_at is not a time (R9)", BARE, VISIT],
        "different on purpose: R9, a number of 9 to 13 digits is a time",
    ),
    Case(
        "unsubscribed: false",
        [at(1, set_={"unsubscribed": False, "plan": "pro"})],
        {},
        "sent: who had unsubscribed got mail again",
        [
            "left out: unsubscribed is about consent (R19)",
            'id:u1 has {"identifier": "u1", "plan": "pro"}',
            VISIT,
        ],
        "different on purpose: R19",
    ),
    Case(
        "unsubscribed: true",
        [at(1, set_={"unsubscribed": True})],
        {},
        "sent",
        ['id:u1 has {"identifier": "u1", "unsubscribed": true}', VISIT],
        SAME,
    ),
    Case(
        "$groupidentify",
        [at(1, "$groupidentify", "0198c5a5-74f6-7a5e-9d5e-3f0a5c5c5c5c")],
        {},
        "a customer whose id is the random distinct_id, and the event",
        ["filtered: $groupidentify is never sent (R4)"],
        "different on purpose: R4, a group is not a person",
    ),
    Case(
        "a distinct_id that is a placeholder",
        [at(1, distinct_id="undefined", set_={"email": A}), at(2, distinct_id="[object Object]")],
        {},
        "customers with the ids undefined and [object Object]",
        ["refused: distinct_id is a placeholder (R14)"] * 2,
        "different on purpose: R14, many people are behind such an id",
    ),
    Case(
        "a valid email, in mixed case",
        [at(1, set_={"email": "A@Example.com"})],
        {},
        "sent as given",
        ['id:u1 has {"email": "A@Example.com", "identifier": "u1"}', VISIT],
        SAME,
    ),
    *(
        Case(
            f"no valid email: {given!r}",
            [at(1, set_={"email": given})],
            {},
            "the bad value was sent",
            ["left out: email is not a valid email (R2)", BARE, VISIT],
            "different on purpose: R2, left out, with a row in rejects",
        )
        for given in ("nobody", " a@example.com", "a@exämple.com", {"a": 1}, "")
    ),
    Case(
        "no valid email, and the distinct_id is one",
        [at(1, distinct_id=A, set_={"email": "nobody"})],
        {},
        "the distinct_id as the email",
        [
            "left out: email is not a valid email (R2)",
            'email:a@example.com has {"email": "a@example.com", "identifier": "a@example.com"}',
            'email:a@example.com event "visit" {}',
        ],
        SAME,
    ),
    Case(
        "no email given, and the distinct_id is one: only users with emails",
        [at(1, distinct_id=A)],
        {"anonymous_users": "emails"},
        "nothing: no email was derived",
        [
            'email:a@example.com has {"email": "a@example.com", "identifier": "a@example.com"}',
            'email:a@example.com event "visit" {}',
        ],
        "different on purpose: R1, the distinct_id is the email",
    ),
    Case(
        "identify by email",
        [at(1, set_={"email": "A@Example.com"})],
        {"identify_by_email": True},
        "the email as given was the id in both paths; identifier stayed the distinct_id",
        ['email:a@example.com has {"email": "a@example.com", "identifier": "u1"}', 'email:a@example.com event "visit" {}'],
        "same, in lower case (R6)",
    ),
    Case(
        "identify by email: a later event without the email",
        [at(1, set_={"email": A}), at(2, "later")],
        {"identify_by_email": True},
        "the later one went to the distinct_id: a second profile",
        [
            'email:a@example.com has {"email": "a@example.com", "identifier": "u1"}',
            'email:a@example.com event "visit" {}',
            'email:a@example.com event "later" {}',
        ],
        "different on purpose: R6",
    ),
    *(
        Case(
            f"the type of {name}",
            [at(1, name, **{"$current_url": "/"})],
            {},
            f"{action}; the name stays {name}",
            [BARE, f'id:u1 {action} "{name}" {{"$current_url": "/"}}'],
            SAME,
        )
        for name, action in (("$pageview", "page"), ("$screen", "screen"), ("$autocapture", "event"), ("$identify", "event"))
    ),
    Case(
        "data",
        [at(1, nested={"a": [None, 1.5]}, set_={}, set_once_={}, unset_=[], **{"$ip": "192.0.2.1"})],
        {},
        "the properties without $set and $set_once, with $unset",
        [BARE, 'id:u1 event "visit" {"nested": {"a": [null, 1.5]}, "$ip": "192.0.2.1"}'],
        "different on purpose: R12, without $unset too",
    ),
    Case(
        "data that Customer.io takes for the mail's address",
        [at(1, recipient="x@example.com")],
        {},
        "passed on: Customer.io mailed to it",
        ["left out: recipient would change an email's recipient or sender (R13)", BARE, VISIT],
        "different on purpose: R13",
    ),
    Case(
        "$set is null",
        [at(1, set_=None)],
        {},
        "a TypeError: the event was lost",
        [BARE, VISIT],
        "different on purpose: R7, it counts as absent",
    ),
    Case(
        "$set is a text",
        [at(1, set_="ab")],
        {},
        'spread: attributes "0": "a" and "1": "b"',
        [BARE, VISIT],
        "different on purpose: R7, it counts as absent",
    ),
    *(
        Case(
            f"the distinct_id {distinct_id!r}",
            [at(1, distinct_id=distinct_id)],
            {},
            plugin,
            [f'id:{distinct_id} has {{"identifier": "{distinct_id}"}}', f'id:{distinct_id} event "visit" {{}}'],
            "different on purpose: R6, the id is in the body as it is",
        )
        for distinct_id, plugin in (
            ("a/b", "/customers/a/b: not encoded"),
            ("a?b", "/customers/a with a query"),
            ("a#b", "/customers/a: PUT and POST both hit somebody else"),
            ("..", "/api/v1/ and /api/v1/events"),
        )
    ),
    Case(
        "an empty distinct_id",
        [at(1, distinct_id="")],
        {},
        "/customers/: lost",
        ["refused: distinct_id is blank (R14)"],
        "different on purpose: R14, kept in the rejects",
    ),
]


def goes_out(case: Case) -> list[str]:
    classified = outcomes(*case.events, **case.options)
    made = tables(*case.events, **case.options)
    operations = sent(*case.events, **case.options)
    return [
        *(outcome for outcome in classified if outcome != "sent"),
        *(f"left out: {row.name} {row.reason}" for row in made.rejects.itertuples()),
        *(f"{key} has {json.dumps(has, sort_keys=True)}" for key, has in customers(*case.events, **case.options).items()),
        *(
            f'{key} {o["action"]} "{o["name"]}" {json.dumps(o["attributes"])}'
            for key, o in zip(made.events["key"], operations, strict=True)
        ),
    ]


@pytest.mark.parametrize("case", CASES, ids=[case.situation for case in CASES])
def test_what_the_plugin_did_and_what_this_connector_does(case: Case) -> None:
    assert goes_out(case) == case.ours
    assert case.verdict.startswith(("same", "different on purpose: R"))


def test_a_timestamp_is_in_whole_seconds_where_the_plugin_sent_a_fraction() -> None:
    [operation] = sent(event(at="2024-01-02T03:04:05.678+01:00"))
    assert operation["timestamp"] == 1704161045


def test_an_event_carries_an_id_where_the_plugin_sent_none() -> None:
    assert len(sent(event())[0]["id"]) == 26
