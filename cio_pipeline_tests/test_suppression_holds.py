"""R21 over random streams, settings and lists: nothing of a listed person is sent, and everything else is."""

from __future__ import annotations

import json
import uuid
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.customerio.suppression_list import parse
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.deliveries import deliver, shards_of
from cio_pipeline_tests.examples import examples
from cio_pipeline_tests.rules.random_streams import Stream, options, streams
from cio_pipeline_tests.rules.reference import Event, expected, is_email, is_usable, readable
from cio_pipeline_tests.test_rules_hold import START, Draw, Workspace, days_of, derived, exactly, latest

Node = tuple[str, str]
DAY_ONE = 1_772_409_600_000_000
"""2026-03-02, in microseconds."""


def links(event: Event) -> list[tuple[Node, Node]]:
    """What an event links together, as R21 has it, one event at a time: distinct_ids, and emails in lower case."""
    who = event.distinct_id
    if not is_usable(who):
        return []
    found: list[tuple[Node, Node]] = []
    if is_email(who):
        found.append((("id", who), ("email", who.lower())))
    properties: Any = readable(event.properties)
    given = readable(event.person_properties) if event.person_properties is not None else properties.get("$set")
    email = given.get("email") if isinstance(given, dict) else None
    if is_email(email):
        found.append((("id", who), ("email", str(email).lower())))
    anonymous_id = properties.get("$anon_distinct_id")
    if event.name == "$identify" and isinstance(anonymous_id, str) and is_usable(anonymous_id):
        found.append((("id", who), ("id", anonymous_id)))
        if is_email(anonymous_id):
            found.append((("id", anonymous_id), ("email", anonymous_id.lower())))
    return found


def person(stream: Stream, start: Node) -> set[Node]:
    """All that is linked to a distinct_id or email."""
    pairs = [pair for event in stream.events for pair in links(event)]
    found = {start} | ({("email", start[1].lower())} if is_email(start[1]) else set())
    while more := {node for pair in pairs if found.intersection(pair) for node in pair} - found:
        found |= more
    return found


def is_theirs(key: str, persons: set[Node]) -> bool:
    kind, _, value = key.partition(":")
    return (kind, value) in persons


def lines(name: str) -> st.SearchStrategy[str]:
    """Ways to put somebody on the list; `names` are exact but for emails."""
    exact = [name, f'"{name}"', sha256(name.encode()).hexdigest(), f"sha256:{sha256(name.encode()).hexdigest()}", f'"{name}",x']
    email = [name.upper(), name.lower(), f"Somebody <{name}>", f"mailto:{name}", sha256(name.lower().encode()).hexdigest()]
    return st.sampled_from(exact + email if is_email(name) else exact)


IDS = ["u1", "u2", "u3", "u4", "anon-1", "anon-2", "anon-3", "D@Example.com"]
EMAILS = ["a@example.com", "A@example.com", "b@example.com", "c@example.com", "d@example.com"]


UUIDS = [lambda number: str(uuid.UUID(int=number + 1)), lambda number: f"urn:uuid:{uuid.UUID(int=number + 1)}"]


@st.composite
def loose(draw: st.DrawFn) -> Stream:
    """Few events that link few people, so that most chains are short and a missing link shows."""
    ids = st.sampled_from(IDS)
    names = st.sampled_from(["visit", "visit", "$identify"])
    drawn = draw(
        st.lists(st.tuples(st.integers(0, 2), names, ids, ids, st.integers(0, 9), st.integers(0, 3)), min_size=3, max_size=9)
    )
    events = []
    for number, (day, name, who, other, email, odd) in enumerate(drawn):
        named = {"$anon_distinct_id": other} if name == "$identify" else {}
        set_ = {"$set": {"email": EMAILS[email]}} if email < len(EMAILS) else {}
        at = DAY_ONE + day * 86_400_000_000 + number * 2_000_000
        events.append(Event(at, UUIDS[odd == 0](number), name, who, json.dumps({**named, **set_})))
    return Stream(events, 3)


@pytest.mark.hypothesis
@pytest.mark.parametrize(("kind", "count"), [("loose", 7), ("hostile", 3)])
def test_nothing_of_a_listed_person_is_sent_and_everything_else_is(kind: str, count: int) -> None:
    drawn = loose() if kind == "loose" else streams(hostile=True, seconds_apart=True)

    @examples(count)
    @given(data=st.data())
    def holds(data: Draw) -> None:
        nothing_of_a_listed_person_is_sent(data.draw(drawn), data)

    holds()


def nothing_of_a_listed_person_is_sent(stream: Stream, data: Draw) -> None:
    chosen = data.draw(options)
    nodes = sorted({node for event in stream.events for pair in links(event) for node in pair} | {("id", "u1")})
    name = data.draw(st.sampled_from([value for _, value in nodes if value.isprintable() and '"' not in value]), "name")
    line = data.draw(lines(name), "line")
    persons = person(stream, ("email" if ("email", name) in nodes else "id", name))
    persons |= person(stream, ("id", name))
    wanted = expected(stream.events, START, chosen)
    with derived(stream, chosen, data) as product:
        workspace, ledger = Workspace(by_time=False), Ledger(f"sqlite:///{product.tables.root}/ledger.db")
        listed = parse(f"{line}\n".encode())
        assert listed.people_listed == 1
        people = listed.with_linked(product.identities.linked, product.identities.all_names())
        for day in days_of(stream):
            deliver(
                day,
                shards_of(product.tables, day),
                ledger,
                workspace,
                options=DeliveryOptions(people, allow_consent=chosen.allow_consent),
            )
    rest = {key: values for key, values in latest(wanted).items() if not is_theirs(key, persons)}
    assert exactly(workspace.people) == exactly(rest)
    sent = [event["id"] for day in wanted.events.values() for event in day if not is_theirs(event["key"], persons)]
    assert sorted(workspace.event_ids) == sorted(sent)


def test_a_person_is_found_through_days_before_and_after() -> None:
    """The reference itself: an email that another id had later links both, and the anonymous id of the first."""
    at = DAY_ONE
    events = [
        Event(at, "1", "visit", "anon"),
        Event(at + 1, "2", "$identify", "u1", json.dumps({"$anon_distinct_id": "anon", "$set": {"email": "A@example.com"}})),
        Event(at + 2, "3", "visit", "u2", json.dumps({"$set": {"email": "a@example.com"}})),
        Event(at + 3, "4", "visit", "u3"),
    ]
    found = person(Stream(events, 1), ("id", "u2"))
    assert found == {("id", "u2"), ("email", "a@example.com"), ("id", "u1"), ("id", "anon")}
