"""R20: a day is kept with each event once, with the attributes that PostHog still gives, and without losing what was known."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cio_pipeline.pipeline.extract import SPILLED, check_extracted_under, extract_day, extract_history
from cio_pipeline.pipeline.extract_shard import ExtractionCounts
from cio_pipeline.posthog.exports.batch_export import BatchExportSource
from cio_pipeline.posthog.source import EVENT_SCHEMA, NEEDED, EventStream, NotExtracted
from cio_pipeline.rules.options import AttributesFrom
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.tables.tables import Tables

DAY = "2026-03-02"
START = datetime(2026, 3, 2, tzinfo=UTC)
YOUNG, OLD = START + timedelta(days=2), START + timedelta(days=90)
PERSON = '{"email":"ada@example.com","plan":"pro"}'


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    return Tables(str(tmp_path))


def event(
    number: int, name: str = "order", hours: float = 10, person: str | None = PERSON, **properties: Any
) -> dict[str, Any]:
    """A row of a source; `set_`, `set_once_` and `unset_` stand for `$set`, `$set_once` and `$unset`."""
    named = {f"${key[:-1]}" if key.endswith("_") else key: value for key, value in properties.items()}
    at = START + timedelta(hours=hours)
    return {
        "uuid": f"00000000-0000-4000-8000-{number:012d}",
        "event": name,
        "distinct_id": f"u{number % 5}",
        "timestamp": at,
        "created_at": at,
        "properties": json.dumps(named),
        "person_properties": person,
    }


def stream(*events: dict[str, Any], expected: int | None = None) -> EventStream:
    rows = pd.DataFrame(events, columns=EVENT_SCHEMA.names)
    for name in ("timestamp", "created_at"):
        rows[name] = pd.to_datetime(rows[name], utc=True).astype("datetime64[us, UTC]")
    return EventStream(len(events) if expected is None else expected, iter([rows]))


def extract(
    tables: Tables, now: datetime, *events: dict[str, Any], mode: AttributesFrom = "auto", **how: Any
) -> ExtractionCounts:
    return extract_day(tables, DAY, stream(*events, **how), start=START, attributes=mode, now=now)


def kept(tables: Tables, table: str = "posthog_events", day: str = DAY) -> dict[str, tuple[Any, str | None]]:
    """uuid's last digits to properties and the person's properties."""
    rows: Any = pd.concat(tables.read(table, day)).itertuples()
    return {
        str(int(row.uuid[-12:])): (
            json.loads(row.properties),
            row.person_properties if isinstance(row.person_properties, str) else None,
        )
        for row in rows
    }


def persons(tables: Tables) -> dict[str, str | None]:
    return {number: person for number, (_, person) in kept(tables).items()}


@pytest.mark.parametrize(
    ("mode", "now", "taken"),
    [("set", OLD, None), ("set", YOUNG, None), ("auto", YOUNG, None), ("auto", OLD, PERSON), ("person", YOUNG, PERSON)],
)
def test_the_persons_properties_are_there_just_where_they_are_to_be_taken(
    tables: Tables, mode: AttributesFrom, now: datetime, taken: str | None
) -> None:
    extract(tables, now, event(1), event(2, "$identify"), mode=mode)
    assert persons(tables) == {"1": taken, "2": taken}


def test_with_person_a_person_that_is_missing_is_an_empty_one(tables: Tables) -> None:
    extract(tables, YOUNG, event(1, person="{}", set_={"plan": "free"}), mode="person")
    assert persons(tables) == {"1": "{}"}


def test_a_posthog_that_drops_nothing_is_told_by_an_event_over_61_days_old(tables: Tables) -> None:
    extract(tables, OLD, event(1, hours=1), event(2, hours=9, set_once_={"a": 1}), event(3, hours=20))
    assert set(persons(tables).values()) == {None}


def test_on_the_day_that_is_being_dropped_what_comes_before_the_first_set_has_lost_its_own(tables: Tables) -> None:
    now = START + timedelta(days=60, hours=12)
    extract(tables, now, event(1, hours=1), event(2, hours=11), event(3, hours=12, set_={"a": 1}), event(4, hours=13))
    assert persons(tables) == {"1": PERSON, "2": PERSON, "3": None, "4": None}


def test_of_one_moment_the_uuid_and_the_name_say_what_comes_before(tables: Tables) -> None:
    now = START + timedelta(days=60)
    extract(tables, now, event(1), event(2, set_={"a": 1}), event(3))
    assert persons(tables) == {"1": PERSON, "2": None, "3": None}


def test_events_under_59_days_have_lost_nothing(tables: Tables) -> None:
    extract(tables, START + timedelta(days=59, hours=12), event(1, hours=1), event(2, hours=13))
    assert persons(tables) == {"1": PERSON, "2": None}


@pytest.mark.parametrize("value", ["{}", '"text"', "null", "[1]"])
def test_an_empty_set_or_one_that_is_no_object_is_none(tables: Tables, value: str) -> None:
    extract(tables, OLD, {**event(1), "properties": f'{{"$set":{value},"x":{{"$set":{{"a":1}}}}}}'})
    assert persons(tables) == {"1": PERSON}


def test_where_the_source_has_no_persons_there_is_nothing_to_take_and_it_is_counted(tables: Tables) -> None:
    found = extract(tables, OLD, event(1, person=None), event(2, "$identify", person=None))
    assert persons(tables) == {"1": None, "2": None}
    assert (found.lacked_person, found.used_person, found.identity_events, found.has_attributes) == (2, 0, 1, False)


@pytest.mark.parametrize("expected", [[1, 300_000], [300_000, 1], [1, 1]], ids=["more-shards", "fewer-shards", "as-many"])
@pytest.mark.parametrize("mode", ["auto", "set", "person"])
def test_a_day_that_is_read_again_keeps_what_posthog_has_dropped_since(
    tables: Tables, expected: list[int], mode: AttributesFrom
) -> None:
    first, second = expected
    whole: dict[str, Any] = {"set_": {"plan": "é" * 3}, "set_once_": {"ref": 12345678901234567890123}, "unset_": ["old"]}
    extract(tables, YOUNG, *(event(number, n=number, **whole) for number in range(40)), mode=mode, expected=first)
    dropped = [event(number, n=number) for number in range(40)]
    found = extract(tables, OLD, *dropped, event(41), mode=mode, expected=second)
    assert (found.set_restored, found.rows_written) == (40, 41)
    properties = kept(tables)
    assert properties["7"][0] == {"n": 7, "$set": whole["set_"], "$set_once": whole["set_once_"], "$unset": ["old"]}
    assert properties["41"][0] == {}
    assert properties["7"][1] == (PERSON if mode == "person" else None)


def test_what_is_given_anew_counts_and_each_name_is_looked_at_by_itself(tables: Tables) -> None:
    extract(tables, YOUNG, event(1, set_={"a": 1}, set_once_={"b": 1}), event(2, set_={"a": 1}), event(3, set_={"a": 1}))
    extract(tables, OLD, event(1, set_={"a": 2}), event(2, set_={}), {**event(3), "properties": "no JSON"[:0]})
    properties = {number: found for number, (found, _) in kept(tables).items()}
    assert properties == {"1": {"$set": {"a": 2}, "$set_once": {"b": 1}}, "2": {"$set": {"a": 1}}, "3": {"$set": {"a": 1}}}


def test_another_event_of_the_same_uuid_gets_nothing_of_it(tables: Tables) -> None:
    extract(tables, YOUNG, event(1, set_={"a": 1}))
    found = extract(tables, OLD, event(1, "visit"), {**event(1), "distinct_id": "u9"})
    assert found.set_restored == 0


def test_events_that_took_the_persons_properties_take_them_again(tables: Tables) -> None:
    rows = [event(1, hours=1), event(2, hours=12, set_={"a": 1}), event(3, hours=13)]
    extract(tables, START + timedelta(days=60, hours=12), *rows)
    before = persons(tables)
    dropped = [event(1, hours=1, person=None), event(2, hours=12), event(3, hours=13)]
    for _ in range(2):
        extract(tables, OLD, *dropped)
        assert persons(tables) == before == {"1": PERSON, "2": None, "3": None}


def test_a_day_read_young_with_person_is_read_old_by_its_sets_once_auto_is_set(tables: Tables) -> None:
    extract(tables, YOUNG, event(1), event(2, hours=11, set_={"a": 1}), mode="person")
    extract(tables, OLD, event(1), event(2, hours=11))
    assert persons(tables) == {"1": None, "2": None}
    assert kept(tables)["2"][0] == {"$set": {"a": 1}}


def test_the_history_takes_the_person_of_each_old_event_that_has_no_set(tables: Tables) -> None:
    old = [event(1, "$identify"), event(2, "$set", set_={"email": "b@example.com"}), event(3, "$set", set_once_={"a": 1})]
    extract_history(
        tables,
        HISTORY_PARTITION,
        stream(*old, event(4, "$identify", hours=24 * 40)),
        attributes="auto",
        now=START + timedelta(days=61),
    )
    found = {number: person for number, (_, person) in kept(tables, "identity_history", HISTORY_PARTITION).items()}
    assert found == {"1": PERSON, "2": None, "3": None, "4": None}


def test_the_history_tells_days_apart(tables: Tables) -> None:
    rows = [event(1, "$set", set_={"a": 1}), event(1, "$set", hours=34), event(1, "$set", hours=35)]
    found = extract_history(tables, HISTORY_PARTITION, stream(*rows), attributes="auto", now=OLD)
    assert (found.rows_written, found.duplicates.total()) == (2, 1)


def test_duplicates_go_and_are_counted_by_reason_and_the_last_ingested_counts(tables: Tables) -> None:
    later = {**event(2, n="last"), "created_at": START + timedelta(days=1)}
    same_uuid = [event(3), event(3, "visit"), {**event(3), "distinct_id": "u9"}]
    rows = [event(1), event(1), later, event(2, n="first"), event(2, n="first"), *same_uuid]
    found = extract(tables, YOUNG, *rows)
    assert (found.rows_read, found.rows_written) == (8, 5)
    assert found.duplicates == {
        "duplicates: the same row again": 2,
        "duplicates: ingested again, the last one counts": 1,
    }
    assert kept(tables)["2"][0] == {"n": "last"}


@pytest.mark.parametrize("several_files", [False, True])
@pytest.mark.parametrize(("older", "newer", "left"), [("old", None, None), (None, "new", "new"), ("old", "new", "new")])
def test_an_email_that_a_newer_copy_of_its_event_no_longer_has_does_not_count_even_if_the_event_is_not_on_the_allowlist(
    tables: Tables, tmp_path: Path, older: str | None, newer: str | None, left: str | None, several_files: bool
) -> None:
    given: list[dict[str, Any]] = [{"set_": {"email": f"{email}@example.com"}} if email else {} for email in (older, newer)]
    copies = [event(1, "other", person=None, **properties) for properties in given]
    copies[1]["created_at"] += timedelta(seconds=1)
    rows = pa.Table.from_pylist([*copies, event(2, "other", person=None), event(3, "listed", person=None)], EVENT_SCHEMA)
    ends = [START + timedelta(hours=12), START + timedelta(days=1)] if several_files else [START + timedelta(days=1)]
    for begin, end in pairwise([START, *ends]):
        piece = rows.slice(1) if end is ends[0] and several_files else rows.slice(0, 1 if several_files else None)
        pq.write_table(piece, tmp_path / f"{begin.isoformat()}-{end.isoformat()}.parquet")
    source = BatchExportSource(str(tmp_path), 0, ("listed",), "auto")
    events = source.events(START, START + timedelta(days=1))
    counts = extract_day(tables, DAY, events, start=START, attributes="auto", now=YOUNG)
    emails = {number: properties["$set"]["email"] for number, (properties, _) in kept(tables).items() if properties}
    assert emails == ({"1": f"{left}@example.com"} if left else {})
    assert kept(tables).keys() == ({"1", "3"} if left else {"3"})
    assert (counts.rows_read, counts.rows_written, counts.duplicates.total()) == (4, 2 if left else 1, 1)
    assert counts.not_needed == (1 if left else 2)


def test_which_of_two_rows_ingested_at_once_counts_does_not_hang_on_their_order(tables: Tables) -> None:
    rows = [event(1, n=number) for number in range(5)]
    outcomes = set()
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        extract(tables, YOUNG, *rows)
        outcomes.add(str(kept(tables)))
    assert len(outcomes) == 1


def test_events_of_a_person_come_by_time_uuid_and_name(tables: Tables) -> None:
    extract(tables, YOUNG, event(1, "b"), event(1, "a"), event(6, "a", hours=3), event(11, "c"))
    [shard] = tables.read("posthog_events", DAY)
    assert [(str(row.uuid)[-2:], row.event) for row in shard.itertuples()] == [
        ("06", "a"),
        ("01", "a"),
        ("01", "b"),
        ("11", "c"),
    ]


@pytest.mark.parametrize("now", [YOUNG, OLD])
def test_rows_that_vanish_on_the_way_fail_the_day_and_leave_the_table_as_it_was(
    tables: Tables, monkeypatch: pytest.MonkeyPatch, now: datetime
) -> None:
    extract(tables, now, event(1))
    before = tables.version("posthog_events", DAY)
    monkeypatch.setattr("cio_pipeline.tables.shuffle.Shard.read", lambda _: SPILLED.empty_table())
    with pytest.raises(NotExtracted, match=r"2 events were read, but 0 are left"):
        extract(tables, now, event(1), event(2))
    assert tables.version("posthog_events", DAY) == before


def test_a_source_that_fails_half_way_leaves_the_table_as_it_was(tables: Tables) -> None:
    extract(tables, OLD, event(1))
    before = tables.version("posthog_events", DAY)

    def frames() -> Iterator[pd.DataFrame]:
        yield from stream(event(2)).frames
        raise NotExtracted("gone")

    with pytest.raises(NotExtracted, match="gone"):
        extract_day(tables, DAY, EventStream(2, frames()), start=START, attributes="auto", now=OLD)
    assert tables.version("posthog_events", DAY) == before


@pytest.mark.parametrize("text", ["[" * 5000, '{"a":' * 3000 + "1" + "}" * 3000, "{", "[]", "7", "\x00", '{"$set":"x"'])
def test_no_properties_whatever_stop_a_day(tables: Tables, text: str) -> None:
    for now in (YOUNG, OLD):
        odd = {**event(1), "properties": text + ' "$set"', "person_properties": text}
        assert extract(tables, now, odd, {**event(2), "properties": None}, event(3, set_={"a": 1})).rows_written == 3
    extract(tables, OLD, {**event(1), "properties": text}, {**event(3), "properties": text})


def test_an_event_that_is_new_to_an_old_day_takes_the_persons_properties_although_others_remember_their_set(
    tables: Tables,
) -> None:
    """The day was extracted at noon, or the event came late: that others had a `$set` says nothing of PostHog today."""
    extract(tables, START + timedelta(hours=12), event(1, set_={"plan": "free"}), event(2))
    for _ in range(2):
        extract(tables, OLD, event(1), event(2), event(3, hours=20))
        assert kept(tables) == {"1": ({"$set": {"plan": "free"}}, None), "2": ({}, None), "3": ({}, PERSON)}


def test_different_events_without_a_valid_uuid_are_all_kept_and_so_is_what_each_had_set(tables: Tables) -> None:
    odd = [{**event(5, hours=hours, set_={"n": hours}), "uuid": uuid} for uuid in ("", "nonsense") for hours in (1, 2)]
    found = extract(tables, YOUNG, *odd, *odd[:1])
    assert (found.rows_written, found.duplicates) == (4, {"duplicates: the same row again": 1})
    extract(tables, OLD, *({**one, "properties": "{}"} for one in odd))
    texts = pd.concat(tables.read("posthog_events", DAY)).sort_values("timestamp")["properties"].tolist()
    assert [json.loads(text) for text in texts] == [{"$set": {"n": hours}} for hours in (1, 1, 2, 2)]


def test_an_event_whose_time_could_not_be_read_does_not_show_that_posthog_drops_nothing(tables: Tables) -> None:
    odd = {**event(1, set_={"plan": "free"}), "timestamp": datetime(1, 1, 2, tzinfo=UTC)}
    extract(tables, OLD, odd, event(2))
    assert persons(tables)["2"] == PERSON


@pytest.mark.parametrize(
    ("mode", "allowlist", "wrong"),
    [
        ("auto", ("a", "b"), None),
        ("auto", ("a",), None),
        ("auto", ("a", "c"), "CIO_EVENT_ALLOWLIST"),
        ("auto", (), "CIO_EVENT_ALLOWLIST"),
        ("set", ("a",), "CIO_ATTRIBUTES_FROM"),
    ],
)
def test_events_that_were_extracted_under_settings_that_lacked_some_are_not_used(
    tables: Tables, mode: AttributesFrom, allowlist: tuple[str, ...], wrong: str | None
) -> None:
    extract_day(tables, DAY, stream(event(1)), start=START, attributes="auto", now=YOUNG, allowlist=("a", "b"))
    if wrong is None:
        check_extracted_under(DAY, tables, mode, allowlist)
    else:
        with pytest.raises(NotExtracted, match=rf"^posthog_events of {DAY} were extracted under another {wrong}: .+ again"):
            check_extracted_under(DAY, tables, mode, allowlist)


def test_all_events_hold_those_of_any_allowlist(tables: Tables) -> None:
    extract(tables, YOUNG, event(1))
    for allowlist in ((), ("a",)):
        check_extracted_under(DAY, tables, "auto", allowlist)


@pytest.mark.parametrize("person", [None, "{}"], ids=["no person", "a person without an email"])
def test_an_event_that_is_kept_only_for_its_email_keeps_it_after_posthog_has_dropped_it(
    tables: Tables, person: str | None
) -> None:
    """With an allowlist, a source says that it does not need the event any more."""

    def needed(*rows: tuple[dict[str, Any], bool]) -> EventStream:
        [frame] = stream(*(row for row, _ in rows)).frames
        table = pa.Table.from_pandas(frame, EVENT_SCHEMA, preserve_index=False)
        return EventStream(len(rows), iter([table.append_column(NEEDED, [[is_needed for _, is_needed in rows]])]))

    with_set = event(1, "other", set_={"email": "ada@example.com"}, person=person)
    without, unknown = event(1, "other", person=person), event(2, "other", x=1, person=person)
    for now, rows in ((YOUNG, [(with_set, True), (unknown, False)]), (OLD, [(without, False), (unknown, False)])):
        counts = extract_day(tables, DAY, needed(*rows), start=START, attributes="auto", now=now, allowlist=("order",))
        assert (counts.rows_written, counts.not_needed) == (1, 1)
        assert kept(tables) == {"1": ({"$set": {"email": "ada@example.com"}}, None)}
