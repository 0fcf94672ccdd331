"""R16: held-back events are sent once their person is known, with their own times and ids, and never twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cio_pipeline.rules.facts import learn
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.stitching import merges
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.rules.streams import event, frame

SATURDAY, SUNDAY, MONDAY = "2026-02-28", "2026-03-01", "2026-03-02"


def visit(day: str, name: str = "visit", time: str = "10:00", who: str = "anon", **properties: Any) -> dict[str, Any]:
    return event(name, who, at=f"{day}T{time}Z", **properties)


def merge(day: str, who: str = "u1", time: str = "12:00", named: Any = "anon", **properties: Any) -> dict[str, Any]:
    return {**event("$identify", who, at=f"{day}T{time}Z", **{"$anon_distinct_id": named}, **properties)}


def derived(folder: Path, *events: dict[str, Any], shards: int = 1, **options: Any) -> Days:
    """The days of these events, learned and derived."""
    chosen = {"anonymous_users": "identified", "stitch_anonymous_days": 7, **options}
    product = Days(str(folder), Options(**chosen))
    table = frame(*events)
    days = table["timestamp"].dt.strftime("%Y-%m-%d")
    for day in days.unique():
        product.extract(day, table[days == day], shards)
        product.learn(day)
    for day in days.unique():
        product.derive(day)
    return product


def sent(product: Days, day: str) -> list[tuple[str, str]]:
    """(name, key) of what the day sends, less the `$identify`s."""
    return [(found["name"], found["key"]) for found in product.events(day) if found["name"] != "$identify"]


def test_r16_an_earlier_day_s_events_come_with_the_identify_as_the_person_s(tmp_path: Path) -> None:
    product = derived(tmp_path, visit(SATURDAY, set_={"plan": "pro"}, amount=1), merge(MONDAY, "Me@example.com"))
    assert sent(product, SATURDAY) == []
    [stitched, identify] = product.events(MONDAY)
    assert stitched == {
        "id": stitched["id"],
        "name": "visit",
        "timestamp": 1772272800,
        "type": "event",
        "call": "batch",
        "key": "email:me@example.com",
        "data": {"amount": 1},
        "personless": False,
    }
    assert identify["name"] == "$identify"
    assert product.customers(MONDAY) == {
        "email:me@example.com": {
            "plan": ("pro", 1772272800),
            "identifier": ("Me@example.com", 1772452800),
            "email": ("me@example.com", 1772452800),
        }
    }


def test_r16_a_stitched_event_gives_its_person_s_distinct_id_and_email(tmp_path: Path) -> None:
    events = [visit(SUNDAY), merge(MONDAY, set_={"email": "Me@example.com"})]
    product = derived(tmp_path, *events, event_allowlist=("visit",))
    assert product.customers(MONDAY) == {"id:u1": {"identifier": ("u1", 1772359200), "email": ("Me@example.com", 1772359200)}}
    assert [row.distinct_id for row in product.rows("events", MONDAY)] == ["anon"]


def test_r16_an_email_that_a_visitor_gave_before_the_identify_is_the_person_s_until_the_person_has_one(tmp_path: Path) -> None:
    signed_up = visit(SUNDAY, "signed up", set_={"email": "Visitor@example.com"})
    product = derived(tmp_path, signed_up, merge(MONDAY, time="12:00"))
    assert product.customers(MONDAY)["id:u1"]["email"] == ("Visitor@example.com", 1772359200)
    assert [row.email for row in product.rows("customers", MONDAY)] == ["Visitor@example.com"]
    own = event("changed", "u1", at=f"{MONDAY}T13:00Z", set_={"email": "own@example.com"})
    product = derived(tmp_path / "own", signed_up, merge(MONDAY, time="12:00"), own)
    assert product.customers(MONDAY)["id:u1"]["email"] == ("own@example.com", 1772456400)


def test_r17_an_email_is_as_old_as_what_set_it_and_as_the_event_that_brings_it(tmp_path: Path) -> None:
    before = merge(SUNDAY, named="other", set_={"email": "old@example.com"})
    held_back = visit(MONDAY, time="09:00")
    changed = merge(MONDAY, set_={"email": "new@example.com"})
    for own, email in (({}, ("new@example.com", 1772442000)), ({"email": "own@example.com"}, ("own@example.com", 1772445600))):
        later = event("visit", "u1", at=f"{MONDAY}T10:00Z", set_=own)
        product = derived(tmp_path / email[0], before, held_back, later, changed, event_allowlist=("visit",))
        assert len(product.events(MONDAY)) == 2
        assert product.customers(MONDAY)["id:u1"]["email"] == email


def test_r16_events_of_the_same_day_are_sent_and_counted_as_sent(tmp_path: Path) -> None:
    product = derived(tmp_path, visit(MONDAY), visit(MONDAY, "later", "13:00"), merge(MONDAY))
    assert sent(product, MONDAY) == [("visit", "id:u1")]
    assert product.outcomes(MONDAY) == {"sent": 2, "filtered": 1}
    assert product.counts_by_day[MONDAY].stitched == 0


def test_r16_is_off_by_default(tmp_path: Path) -> None:
    events = [visit(SUNDAY), visit(MONDAY), visit(MONDAY, time="12:00"), merge(MONDAY)]
    product = derived(tmp_path, *events, stitch_anonymous_days=0)
    assert sent(product, MONDAY) == []


@pytest.mark.parametrize(("time", "taken"), [("12:00:00.000000", True), ("11:59:59.999999", False)])
def test_r16_takes_so_many_days_to_the_microsecond(tmp_path: Path, time: str, taken: bool) -> None:
    product = derived(tmp_path, visit(SUNDAY, time=time), merge(MONDAY), stitch_anonymous_days=1)
    assert bool(sent(product, MONDAY)) == taken


def test_r16_two_days_back_are_looked_at(tmp_path: Path) -> None:
    product = derived(tmp_path, visit(SATURDAY, time="23:00"), merge(MONDAY), stitch_anonymous_days=2)
    assert sent(product, MONDAY) == [("visit", "id:u1")]


def test_r16_a_later_naming_takes_only_what_came_after_the_first(tmp_path: Path) -> None:
    events = [
        visit(SATURDAY, "one"),
        merge(SUNDAY, "u1"),
        visit(SUNDAY, "two", "13:00"),
        merge(MONDAY, "u2", "09:00"),
        visit(MONDAY, "three"),
        merge(MONDAY, "u3"),
    ]
    product = derived(tmp_path, *events)
    assert sent(product, SUNDAY) == [("one", "id:u1")]
    assert sorted(sent(product, MONDAY)) == [("three", "id:u3"), ("two", "id:u2")]


def test_r16_of_two_namings_at_the_same_time_the_first_by_uuid_takes_all(tmp_path: Path) -> None:
    product = derived(tmp_path, visit(SUNDAY), merge(MONDAY, "u2"), merge(MONDAY, "u1"))
    assert sent(product, MONDAY) == [("visit", "id:u2")]


def test_r16_events_at_the_time_of_the_naming_go_by_uuid(tmp_path: Path) -> None:
    before, after = visit(MONDAY, "before", "12:00"), visit(MONDAY, "after", "12:00")
    assert sent(derived(tmp_path, before, merge(MONDAY), after), MONDAY) == [("before", "id:u1")]


def test_r16_a_person_who_does_not_pass_takes_the_events_away_unsent(tmp_path: Path) -> None:
    events = [visit(SUNDAY), merge(MONDAY, "u1"), merge(MONDAY, "u2", "13:00", set_={"email": "a@example.com"})]
    product = derived(tmp_path, *events, anonymous_users="emails")
    assert sent(product, MONDAY) == []


def test_r16_under_emails_the_person_s_email_at_that_moment_counts(tmp_path: Path) -> None:
    events = [visit(SUNDAY), merge(MONDAY, set_={"email": "A@example.com"})]
    product = derived(tmp_path, *events, anonymous_users="emails", identify_by_email=True)
    assert sent(product, MONDAY) == [("visit", "email:a@example.com")]


@pytest.mark.parametrize(("when", "taken"), [((SUNDAY, "23:00"), False), ((MONDAY, "11:00"), False), ((MONDAY, "12:30"), True)])
def test_r16_leaves_an_anonymous_id_alone_that_was_identified_by_then(
    tmp_path: Path, when: tuple[str, str], taken: bool
) -> None:
    day, time = when
    identified = event("$identify", "anon", at=f"{day}T{time}Z")
    product = derived(tmp_path, visit(SUNDAY), identified, merge(MONDAY))
    assert (("visit", "id:u1") in sent(product, MONDAY)) == taken


@pytest.mark.parametrize("illegal", ["null", "Guest", "'undefined'", '"0"', " "])
def test_r16_leaves_illegal_ids_alone_on_either_side(tmp_path: Path, illegal: str) -> None:
    events = [visit(SUNDAY, who=illegal), visit(SUNDAY), merge(MONDAY, named=illegal), merge(MONDAY, illegal, "13:00")]
    assert sent(derived(tmp_path, *events), MONDAY) == []


@pytest.mark.parametrize("odd", [None, 7, ["anon"], "", "\ud800", "anon", "x" * 5600])
def test_r16_takes_nothing_for_what_is_no_other_s_id(tmp_path: Path, odd: Any) -> None:
    product = derived(tmp_path, visit(SUNDAY), merge(MONDAY, "anon", named=odd))
    assert sent(product, MONDAY) == []


@pytest.mark.parametrize("raw", ["", "[]", "{"])
def test_r16_an_identify_without_readable_properties_names_nobody(tmp_path: Path, raw: str) -> None:
    identify = event("$identify", "u1", at=f"{MONDAY}T12:00Z", raw=raw)
    assert sent(derived(tmp_path, visit(SUNDAY), identify), MONDAY) == []


def test_r16_an_identify_without_a_usable_distinct_id_takes_nothing(tmp_path: Path) -> None:
    events = [visit(SUNDAY), merge(MONDAY, "x" * 151, "11:00"), merge(MONDAY)]
    assert sent(derived(tmp_path, *events), MONDAY) == [("visit", "id:u1")]


def test_r16_what_was_held_back_counts_as_of_its_own_day(tmp_path: Path) -> None:
    email = {"email": "anon@example.com"}
    events = [visit(SATURDAY, "held back"), visit(SUNDAY, "sent", set_=email), merge(MONDAY, set_={"email": "a@example.com"})]
    product = derived(tmp_path, *events, anonymous_users="emails")
    assert [sent(product, day) for day in (SATURDAY, SUNDAY, MONDAY)] == [[], [("sent", "id:anon")], [("held back", "id:u1")]]


def test_r16_takes_only_what_was_held_back(tmp_path: Path) -> None:
    events = [visit(SUNDAY), visit(SUNDAY, "off"), visit(SUNDAY, "$create_alias"), visit(SUNDAY, "n" * 101)]
    product = derived(tmp_path, *events, merge(MONDAY), event_allowlist=("visit", "n" * 101, "$create_alias"))
    assert sent(product, MONDAY) == [("visit", "id:u1")]


def test_r16_an_identify_off_the_allowlist_stitches_all_the_same(tmp_path: Path) -> None:
    product = derived(tmp_path, visit(SUNDAY), merge(MONDAY), event_allowlist=("visit",))
    assert sent(product, MONDAY) == [("visit", "id:u1")]


def test_r16_reaches_over_shards(tmp_path: Path) -> None:
    names = [f"anon-{number}" for number in range(12)]
    visits = [visit(day, name, who=name) for name in names for day in (SATURDAY, MONDAY)]
    product = derived(tmp_path, *visits, *(merge(MONDAY, f"u{name}", named=name) for name in names), shards=3)
    assert sorted(sent(product, MONDAY)) == sorted([(name, f"id:u{name}") for name in names] * 2)
    assert product.counts_by_day[MONDAY].stitched == 12


def test_r16_deriving_again_gives_the_same(tmp_path: Path) -> None:
    product = derived(tmp_path, visit(SUNDAY), visit(MONDAY), merge(MONDAY))
    once = product.events(MONDAY), product.customers(MONDAY), product.counts_by_day[MONDAY]
    product.derive(MONDAY)
    assert (product.events(MONDAY), product.customers(MONDAY), product.counts_by_day[MONDAY]) == once


def test_r16_with_profiles_the_personless_events_come_with_an_identify_that_is_not_personless(tmp_path: Path) -> None:
    personless: dict[str, Any] = {"$process_person_profile": False}
    held_back = [visit(SUNDAY, **personless), visit(MONDAY, **personless)]
    product = derived(tmp_path / "a", *held_back, merge(MONDAY), anonymous_users="profiles")
    assert sent(product, MONDAY) == [("visit", "id:u1")] * 2
    assert [row.personless for row in product.rows("events", MONDAY)] == [True, True, False]
    product = derived(tmp_path / "b", *held_back, merge(MONDAY, **personless), anonymous_users="profiles")
    assert sent(product, MONDAY) == []


def test_r16_an_identify_whose_uuid_is_none_names_nobody() -> None:
    assert len(merges(frame(merge(MONDAY)))) == 1
    assert merges(frame({**merge(MONDAY), "uuid": "urn:uuid:018f3173-7000-7421-831e-e849e8bb6ffe"})).empty


def test_r21_an_identify_that_is_refused_ties_all_the_same() -> None:
    refused = {**merge(MONDAY), "uuid": "urn:uuid:018f3173-7000-7421-831e-e849e8bb6ffe"}
    assert learn(frame(refused))[1] == learn(frame(merge(MONDAY)))[1] != set()


def test_r16_of_two_namings_with_one_uuid_the_first_by_distinct_id_takes_all(tmp_path: Path) -> None:
    same = "00000000-0000-0000-0000-0000000000aa"
    events = [visit(SUNDAY), {**merge(MONDAY, "u2"), "uuid": same}, {**merge(MONDAY, "u1"), "uuid": same}]
    assert sent(derived(tmp_path, *events), MONDAY) == [("visit", "id:u1")]
