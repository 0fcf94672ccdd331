"""What is read of an event's JSON when it is extracted, and which JSON is canonical."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.json_text import read_leniently
from cio_pipeline.rules.event_data import NOT_DATA, read_event_data
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.properties import parse_properties
from cio_pipeline_tests.examples import examples

NUMBERS = [
    "0",
    "-0",
    "7",
    "-7",
    "1.5",
    "2.50",
    "2.0",
    "-0.0",
    "1e3",
    "1E-7",
    "0.0001",
    "0.00001",
    "01",
    "1.",
    ".5",
    "1e999",
    "NaN",
]
NUMBERS += [
    "123456789012345.6",
    "1234567890123456.7",
    "0.30000000000000004",
    "123456789012345678",
    "1234567890123456789",
    "9" * 30,
]
STRINGS = [
    "a",
    "é",
    "\u2028",
    "\\n",
    '\\"$set\\":',
    "\\/",
    "\\u0041",
    "\\ud800",
    "\\q",
    "C:\\\\users",
    ", 1",
    ": {",
    "\t",
    "$set",
    "\x7f",
]
NAMES = [
    "a",
    "b",
    "$set",
    "$set_once",
    "$unset",
    "$anon_distinct_id",
    "$process_person_profile",
    "email",
    "Recipient",
    "reply_to",
]
NAMES += ["\\u0024set", '\\"$set']
SPACES = st.sampled_from([""] * 12 + [" ", "\n", "\t "])


@st.composite
def objects(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    """The text of an object without a name that comes twice, which PostHog never writes."""
    members = draw(st.dictionaries(st.sampled_from(NAMES), values, max_size=4))
    inner = ",".join(
        f'{draw(SPACES)}"{name}"{draw(SPACES)}:{draw(SPACES)}{value}{draw(SPACES)}' for name, value in members.items()
    )
    return f"{{{inner}{draw(SPACES) if not members else ''}}}"


def lists(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.tuples(st.lists(values, max_size=3), SPACES).map(lambda found: f"[{(',' + found[1]).join(found[0])}]")


strings = st.sampled_from(STRINGS).map(lambda text: f'"{text}"')
texts = objects(
    st.recursive(
        st.sampled_from([*NUMBERS, "true", "false", "null", "tru", ""]) | strings,
        lambda values: objects(values) | lists(values),
        max_leaves=6,
    )
)


def arrays(*values: str | None) -> Any:
    return pa.array([None if value is None else value.encode() for value in values], pa.large_binary())


def parsed(text: str | None, person: str | None = None) -> dict[str, Any]:
    [row] = parse_properties(arrays("$identify"), arrays(text), arrays(person)).to_pylist()
    return dict(row)


@examples(150)
@given(texts)
def test_canonical_json_without_what_is_no_data_is_what_orjson_writes(text: str) -> None:
    found = parsed(text)
    if found["canonical"]:
        wanted = {name: value for name, value in orjson.loads(text).items() if name not in NOT_DATA}
        for canonical, sent_as_is in ((True, found["sent_as_is"]), (True, False), (False, False)):
            columns = [np.array([column]) for column in (canonical, sent_as_is)]
            made = read_event_data(arrays(text), arrays(None), columns[0], columns[1], lambda _: None, Options())
            assert made.json.to_pylist() == [orjson.dumps(wanted)]


@examples(150)
@given(texts)
def test_the_facts_are_those_that_reading_all_of_the_json_tells(text: str) -> None:
    found, whole = parsed(text), read_leniently(text)
    named = whole.get("$anon_distinct_id")
    assert found["anonymous_id"] == (named if isinstance(named, str) else None)
    assert found["personless"] is (whole.get("$process_person_profile") is False)


def test_what_the_sources_give_nearly_always_is_canonical() -> None:
    properties = {"$current_url": "https://a.example/?q=ü", "price": 12.34, "cart": [{"sku": "a", "count": 1}, None, True]}
    text = json.dumps(properties, ensure_ascii=False, separators=(",", ":"))
    assert parsed(text) == {
        "given_email": None,
        "anonymous_id": None,
        "personless": False,
        "canonical": True,
        "sent_as_is": True,
    }


@pytest.mark.parametrize(
    "text", [None, "", "[]", "null", "{", '{"a":NaN}', '{"a":1e999}', '{"a":' + "[" * 300 + "]" * 300 + "}"]
)
def test_json_that_cannot_be_sent_is_not_canonical(text: str | None) -> None:
    assert parsed(text) == {
        "given_email": None,
        "anonymous_id": None,
        "personless": False,
        "canonical": False,
        "sent_as_is": False,
    }


def test_the_email_is_of_the_person_where_that_is_to_be_taken() -> None:
    given = '{"$set":{"email":"set@example.com"}}'
    assert parsed(given)["given_email"] == "set@example.com"
    assert parsed(given, '{"email":"person@example.com"}')["given_email"] == "person@example.com"
    assert parsed(given, "{}")["given_email"] is None
