"""R2, R9, R10's cut and R12's ids: the rules about single values."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.rules.values import cut, is_email, is_uuid, ulids, unix_seconds


@pytest.mark.parametrize(
    "text",
    [
        "test@example.com",
        "Test.User@Example.COM",
        "a.b.c@sub.example.co",
        '"any thing"@example.com',
        "user+tag@example.com",
        "me@[127.0.0.1]",
        "ü@example.com",
    ],
)
def test_r2_takes_an_email(text: str) -> None:
    assert is_email(text)


@pytest.mark.parametrize(
    "value",
    [
        "",
        "nobody",
        " a@example.com",
        "a@example.com\n",
        "a b@example.com",
        "a\u00a0b@example.com",
        "\ufeffa@example.com",
        "a..b@example.com",
        ".a@example.com",
        "a@example",
        "a@example.c",
        "a@exämple.com",
        "a@b@example.com",
        "a\\b@example.com",
        "a\ud800@example.com",
        None,
        7,
        ["a@example.com"],
        {"email": "a@example.com"},
        "x" * 989 + "@example.com",
    ],
)
def test_r2_refuses_what_is_no_email(value: object) -> None:
    assert not is_email(value)


@pytest.mark.parametrize("character", '<>()[]\\,;:@" \t\n\u3000\ufeff')
def test_r2_refuses_an_email_with_such_a_character(character: str) -> None:
    assert not is_email(f"a{character}b@example.com")
    assert not is_email(f"a@exam{character}ple.com")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2020-05-06T07:08:09.500Z", 1588748889),
        ("2020-05-06T07:08:09", 1588748889),
        ("2020-05-06 07:08:09", 1588748889),
        ("2020-05-06T09:08:09+02:00", 1588748889),
        ("2020-05-06T09:08:09+0200", 1588748889),
        ("2020-05-06T02:08:09-05", 1588748889),
        ("2020-05-06", 1588723200),
        ("20200506", 1588723200),
        ("2020-05-06T07:08", 1588748880),
        ("1969-12-31T23:59:59Z", -1),
        (1588748889, 1588748889),
        (1588748889.9, 1588748889),
        (1588748889500, 1588748889),
        (100_000_000_000, 100_000_000_000),
        (100_000_000_001, 100_000_000),
        (100_000_000, 100_000_000),
        (100_000_000.5, 100_000_000),
        (9_999_999_999_999.9, 9_999_999_999),
        ("000000001", 1),
        ("1588748889", 1588748889),
        ("1588748889500", 1588748889),
        ("123456789", 123456789),
    ],
)
def test_r9_reads_a_time(value: object, seconds: int) -> None:
    assert unix_seconds(value) == seconds


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        "",
        "soon",
        "2020",
        "12345678",
        "12345678901234",
        12345678,
        12345678901234,
        1588748889500000,
        1588748889500000000,
        1e13,
        0,
        -0.0,
        -5.5,
        -1588748889,
        float("nan"),
        float("inf"),
        10**400,
        "1588748889.5",
        "-1588748889",
        " 1588748889",
        "2020-13-01",
        "2020-02-30",
        "2020-0506",
        "202005-06",
        "2020-05-06Z",
        "2020-05-06T07:0809",
        "2020-05-06T07:08:09+24:00",
        "2020-05-06T07:08:09+99:99",
        "1.5e9",
        "١٢٣٤٥٦٧٨٩",
        [1],
        {},
    ],
)
def test_r9_leaves_out_what_is_no_time(value: object) -> None:
    assert unix_seconds(value) is None


@given(st.text(st.characters(exclude_categories=["Cs"])), st.integers(0, 40))
def test_r10_cuts_text_at_a_character_boundary(text: str, limit: int) -> None:
    short = cut(text, limit)
    assert len(short.encode()) <= limit
    assert text.startswith(short)
    assert short == text or len((short + text[len(short)]).encode()) > limit


UUID = "018f3173-7000-7421-831e-e849e8bb6ffe"
DAY = 86_400_000_000


def ulid(time: int = 0, name: str = "visit", distinct_id: str = "u1", event_uuid: str = UUID) -> str:
    return ulids([time], [name], [distinct_id], [event_uuid])[0].decode()


def test_r12_an_id_begins_with_the_uuid_s_first_48_bits() -> None:
    found = ulid()
    assert (len(found), found[:9]) == (26, "01HWRQ6W0")
    assert ulid(event_uuid="ffffffff-ffff-ffff-ffff-ffffffffffff")[:10] == "7" + "Z" * 9
    assert ulids([], [], [], []).tolist() == []


def test_r12_the_same_event_has_the_same_id_wherever_it_stands() -> None:
    times, names, ids, uuids = [0, DAY], ["visit", "order"], ["u1", "u2"], [UUID, str(uuid.UUID(int=5))]
    both = ulids(times, names, ids, uuids)
    assert [one.decode() for one in both] == [ulid(), ulid(DAY, "order", "u2", uuids[1])]
    assert ulid(DAY - 1) == ulid(event_uuid=UUID.upper()) == ulid()


@pytest.mark.parametrize(
    "other",
    [
        {"time": DAY},
        {"time": -1},
        {"name": "visit2", "distinct_id": "u1"},
        {"name": "visitu", "distinct_id": "1"},
        {"name": "visit\0", "distinct_id": "u1"},
        {"name": "visit", "distinct_id": "\0u1"},
        {"name": "", "distinct_id": "visitu1"},
        {"name": "visi", "distinct_id": "tu1"},
        {"event_uuid": "018f3173-7000-7421-831e-e849e8bb6fff"},
    ],
)
def test_r12_events_that_differ_in_day_name_distinct_id_or_uuid_have_different_ids(other: dict[str, Any]) -> None:
    assert ulid(**other) != ulid()


TEXTS = st.text("ab 1\0", max_size=4)
EVENTS = st.tuples(st.integers(-2, 2), TEXTS, TEXTS, st.integers(0, 3))


@given(st.sets(EVENTS, min_size=2))
def test_r12_no_two_events_have_one_id(events: set[tuple[int, str, str, int]]) -> None:
    times, names, ids, numbers = zip(*events, strict=True)
    uuids = [str(uuid.UUID(int=number)) for number in numbers]
    assert len(set(ulids([day * DAY for day in times], list(names), list(ids), uuids))) == len(events)


@pytest.mark.parametrize("text", [UUID, UUID.upper(), "00000000-0000-0000-0000-000000000000"])
def test_r14_takes_a_uuid(text: str) -> None:
    assert is_uuid(text)


@pytest.mark.parametrize(
    "text", ["", "none", f"urn:uuid:{UUID}", f"{{{UUID}}}", UUID.replace("-", ""), UUID + "\n", UUID[:-1] + "٣"]
)
def test_r14_refuses_what_is_no_uuid(text: str) -> None:
    assert not is_uuid(text)
