"""R2, R9, R10's cut and R14's uuids: the rules about single values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.rules.values import cut, is_email, is_uuid, unix_seconds


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


@pytest.mark.parametrize("text", [UUID, UUID.upper(), "00000000-0000-0000-0000-000000000000"])
def test_r14_takes_a_uuid(text: str) -> None:
    assert is_uuid(text)


@pytest.mark.parametrize(
    "text", ["", "none", f"urn:uuid:{UUID}", f"{{{UUID}}}", UUID.replace("-", ""), UUID + "\n", UUID[:-1] + "٣"]
)
def test_r14_refuses_what_is_no_uuid(text: str) -> None:
    assert not is_uuid(text)
