"""The ledger: what was acknowledged is remembered, small, without anybody's data."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.ledger.ledger import Acknowledgement, Ledger, Refusal
from cio_pipeline.ledger.state import State, merge, name_hash, pack, unpack, value_hash

DAY = "2026-03-02"
states = st.dictionaries(
    st.binary(min_size=5, max_size=5), st.tuples(st.binary(min_size=6, max_size=6), st.integers(0, 2**32 - 1)), max_size=5
)


def state(**attributes: tuple[str, int]) -> State:
    return {name_hash(name): (value_hash(value.encode()), time) for name, (value, time) in attributes.items()}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def test_delivered_events_are_remembered_by_day(ledger: Ledger) -> None:
    first, second, ends_in_zeros = (str(uuid.uuid4()), str(uuid.uuid4()), "00000000-0000-0000-0000-000000000000")
    ledger.acknowledge(DAY, Acknowledgement(event_uuids=[first, ends_in_zeros]))
    ledger.acknowledge(DAY, Acknowledgement(event_uuids=[second]))
    ledger.acknowledge("2026-03-03", Acknowledgement(event_uuids=[str(uuid.uuid4())]))
    expected = {uuid.UUID(value).bytes for value in (first, second, ends_in_zeros)}
    assert {bytes(value).ljust(16, b"\0") for value in ledger.delivered(DAY)} == expected


def test_states_merge_by_time(ledger: Ledger) -> None:
    ledger.acknowledge(DAY, Acknowledgement(customers={"id:u1": state(plan=("pro", 20), city=("Bonn", 20))}))
    ledger.acknowledge(DAY, Acknowledgement(customers={"id:u1": state(plan=("free", 10), city=("Köln", 30))}))
    assert ledger.states(["id:u1", "id:u2"]) == {"id:u1": state(plan=("pro", 20), city=("Köln", 30))}


def test_a_refusal_stands_until_the_item_is_accepted(ledger: Ledger) -> None:
    event = str(uuid.uuid4())
    refusal = Refusal(event, "event", "invalid name", "the name is blank", "{}", "id:u1")
    ledger.acknowledge(DAY, Acknowledgement(refused=[refusal]))
    ledger.acknowledge(DAY, Acknowledgement(refused=[refusal]))
    assert ledger.refused(DAY) == {event: refusal}
    assert ledger.refused_by_reason() == {"invalid name": 1}
    ledger.acknowledge(DAY, Acknowledgement(event_uuids=[event], accepted=[event]))
    assert ledger.refused(DAY) == {}


def test_the_ledger_holds_no_data_of_people(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.acknowledge(DAY, Acknowledgement(customers={"email:someone@example.com": state(name=("Someone", 1))}))
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"example.com" not in written
    assert b"Someone" not in written


@given(states)
def test_a_state_survives_packing(known: State) -> None:
    assert unpack(pack(known)) == known


@given(states, states, states)
def test_merging_in_any_grouping_keeps_the_newest(first: State, second: State, third: State) -> None:
    merged = merge(merge(first, second), third)
    assert merged == merge(first, merge(second, third))
    for name, (_, time) in merged.items():
        assert time == max(known[name][1] for known in (first, second, third) if name in known)
