"""The ledger, on SQLite and on PostgreSQL: what was acknowledged is remembered, small, without anybody's data."""

from __future__ import annotations

import re
import sqlite3
import uuid
from contextlib import closing, suppress
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.attribute_state import (
    State,
    customer_id,
    merge,
    name_hash,
    pack,
    state_time,
    unpack,
    upsert_id,
    value_hash,
)
from cio_pipeline.packed_ids import CROCKFORD, pack_ids
from cio_pipeline.settings.places import PROJECT
from cio_pipeline.state.acknowledgement import Acknowledgement
from cio_pipeline.state.database import connect
from cio_pipeline.state.delivery_lock import LockLost
from cio_pipeline.state.ledger import DayTotals, Ledger
from cio_pipeline.state.refusals import Refusal

DAY, NEXT_DAY = "2026-03-02", "2026-03-03"
states = st.dictionaries(
    st.binary(min_size=5, max_size=5), st.tuples(st.binary(min_size=6, max_size=6), st.integers(0, 2**32 - 1)), max_size=5
)


def state(**attributes: tuple[str, int]) -> State:
    return {name_hash(name): (value_hash(value.encode()), time) for name, (value, time) in attributes.items()}


def as_ulid(bits: int) -> str:
    return "".join(CROCKFORD[bits >> 5 * place & 31] for place in reversed(range(26)))


def new_id() -> str:
    return as_ulid(uuid.uuid4().int)


@given(st.lists(st.integers(0, 2**128 - 1)))
def test_an_event_is_known_by_the_16_bytes_of_its_ulid(ids: list[int]) -> None:
    packed = [bytes(value).ljust(16, b"\0") for value in pack_ids(list(map(as_ulid, ids)))]
    assert packed == [bits.to_bytes(16, "big") for bits in ids]


@pytest.fixture
def ledger(database_url: str) -> Ledger:
    return Ledger(database_url)


def refusal(item: str, kind: str = "event", key: str = "id:u1", **attributes: tuple[str, int]) -> Refusal:
    return Refusal(item, kind, "invalid name", "the name is blank", "{}", key, state=state(**attributes))


def test_delivered_events_are_remembered_by_day(ledger: Ledger) -> None:
    first, second, ends_in_zeros = 1 << 127, 7, 0
    ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([as_ulid(first), as_ulid(ends_in_zeros)]).tobytes()))
    ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([as_ulid(second)]).tobytes()))
    ledger.acknowledge("2026-03-03", Acknowledgement(event_ids=pack_ids([new_id()]).tobytes()))
    expected = {value.to_bytes(16, "big") for value in (first, second, ends_in_zeros)}
    assert {bytes(value).ljust(16, b"\0") for value in ledger.delivered(DAY)} == expected


def test_delivered_events_are_in_order_and_each_once_for_they_are_searched_by_halving(ledger: Ledger) -> None:
    for number in (3, 1, 2, 3):
        ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([as_ulid(number)]).tobytes()))
    assert ledger.delivered(DAY).tolist() == [number.to_bytes(16, "big") for number in (1, 2, 3)]


def test_the_queries_of_the_deployment_guide_say_what_was_delivered_and_refused(ledger: Ledger, database_url: str) -> None:
    refused = [refusal(new_id())]
    ledger.acknowledge(
        DAY, Acknowledgement(event_ids=pack_ids([as_ulid(number) for number in range(5)]).tobytes(), refused=refused)
    )
    queries = re.findall(r"```sql\n(.+?)```", (PROJECT / "docs" / "deploy.md").read_text(), re.DOTALL)
    with connect(database_url, sa.MetaData()).connect() as connection:
        found = [[tuple(row) for row in connection.exec_driver_sql(query)] for query in queries]
    assert found == [[(DAY, 5)], [("invalid name", 1, DAY, DAY)]]


def test_a_ledger_is_told_from_an_older_copy_by_its_newest_entry(ledger: Ledger) -> None:
    assert ledger.newest() is None
    ledger.acknowledge(DAY, Acknowledgement(customers={"id:a": pack(state(plan=("pro", 20)))}))
    assert ledger.newest() is None, "of events"
    ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([as_ulid(1)]).tobytes()))
    first = ledger.newest()
    ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([as_ulid(2)]).tobytes()))
    second = ledger.newest()
    assert first is not None
    assert second is not None
    assert ledger.has(first)
    assert ledger.has(second)
    assert not ledger.has(second._replace(first_id=first.first_id)), "another one of the same number"
    assert not ledger.has(second._replace(number=4))


def test_of_days_before_one_no_delivery_is_remembered_but_the_newest_entry_stays(ledger: Ledger) -> None:
    for day, number in ((DAY, 1), (NEXT_DAY, 2), (DAY, 3), (DAY, 4)):
        ledger.acknowledge(day, Acknowledgement(event_ids=pack_ids([as_ulid(number)]).tobytes()))
    newest = ledger.newest()
    assert ledger.delete_before(NEXT_DAY) == 2
    assert ledger.delivered(DAY).tolist() == [(4).to_bytes(16, "big")]
    assert ledger.delivered(NEXT_DAY).tolist() == [(2).to_bytes(16, "big")]
    assert ledger.newest() == newest
    assert ledger.delete_before(NEXT_DAY) == 0
    assert ledger.deleted_days(["2026-03-01", DAY, NEXT_DAY]) == [DAY]


def test_the_new_customers_of_all_days_are_those_that_it_knows_each_counted_once(ledger: Ledger) -> None:
    given = [(DAY, ["id:u1", "id:u2"]), (DAY, ["id:u2", "id:u3"]), (NEXT_DAY, ["id:u1", "id:u4"]), (NEXT_DAY, [])]
    for day, keys in given:
        states = {key: pack(state(plan=("pro", 20))) for key in keys}
        ledger.acknowledge(day, Acknowledgement(customers=states, event_ids=b"" if keys else pack_ids([new_id()]).tobytes()))
    days = (DAY, NEXT_DAY, "2026-03-04")
    assert [ledger.totals(day).new_customers for day in days] == [ledger.new_customers(day) for day in days] == [3, 1, 0]
    assert len(ledger.states([f"id:u{number}" for number in range(9)])) == 4


def test_a_days_totals_are_of_all_runs_and_what_is_refused_is_no_part_once_it_is_accepted(ledger: Ledger) -> None:
    first, second, refused = new_id(), new_id(), new_id()
    items = [refusal(refused), refusal(upsert_id("id:u1", 0), "customer", plan=("pro", 10))]
    ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([first]).tobytes(), campaign_events=1, refused=items))
    ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([first, second]).tobytes(), campaign_events=1))
    assert ledger.totals(DAY) == DayTotals(events=2, campaign_events=2, refused=2, refused_events=1)
    assert ledger.events_delivered([DAY, NEXT_DAY]) == {DAY: 3}
    ledger.acknowledge(NEXT_DAY, Acknowledgement(event_ids=pack_ids([refused]).tobytes(), ids_to_close=lambda: [refused]))
    assert ledger.totals(DAY) == DayTotals(events=2, campaign_events=2, refused=1)


def test_r17_states_merge_by_time(ledger: Ledger) -> None:
    ledger.acknowledge(DAY, Acknowledgement(customers={"id:u1": pack(state(plan=("pro", 20), city=("Bonn", 20)))}))
    ledger.acknowledge(DAY, Acknowledgement(customers={"id:u1": pack(state(plan=("free", 10), city=("Köln", 30)))}))
    assert ledger.states(["id:u1", "id:u2"]) == {"id:u1": state(plan=("pro", 20), city=("Köln", 30))}


def test_a_refusal_stands_until_the_item_is_accepted_on_whatever_day(ledger: Ledger) -> None:
    event = new_id()
    ledger.acknowledge(DAY, Acknowledgement(refused=[refusal(event)]))
    ledger.acknowledge(DAY, Acknowledgement(refused=[refusal(event)]))
    assert ledger.refused(DAY) == {event: refusal(event)}
    ledger.acknowledge(NEXT_DAY, Acknowledgement(refused=[refusal(new_id())]))
    assert ledger.refused_by_reason() == {"invalid name": 2}
    assert ledger.open_refusals() == [("invalid name", 2, DAY, NEXT_DAY)]
    assert ledger.refusals(limit=1) == {DAY: [refusal(event)]}
    ledger.acknowledge(NEXT_DAY, Acknowledgement(event_ids=pack_ids([event]).tobytes(), ids_to_close=lambda: [event]))
    assert ledger.refused(DAY) == {}


def test_a_refused_upsert_is_closed_by_newer_data_for_all_it_holds(ledger: Ledger) -> None:
    item = upsert_id("id:u1", 0)
    ledger.acknowledge(DAY, Acknowledgement(refused=[refusal(item, "customer", plan=("pro", 10), city=("Bonn", 20))]))
    ledger.acknowledge(NEXT_DAY, Acknowledgement(customers={"id:u2": pack(state(plan=("pro", 30), city=("Bonn", 30)))}))
    ledger.acknowledge(
        NEXT_DAY, Acknowledgement(ids_to_close=lambda: [item], customers={"id:u1": pack(state(plan=("free", 30)))})
    )
    assert list(ledger.refused(DAY)) == [item], "nobody has set the city since"
    ledger.acknowledge(NEXT_DAY, Acknowledgement(customers={"id:u1": pack(state(city=("Bonn", 20)))}))
    assert ledger.refused(DAY) == {}


def test_an_upsert_that_was_refused_on_two_days_is_closed_on_that_whose_attributes_were_set_since(ledger: Ledger) -> None:
    item = upsert_id("id:u1", 0)
    ledger.acknowledge(DAY, Acknowledgement(refused=[refusal(item, "customer", plan=("pro", 10))]))
    ledger.acknowledge(NEXT_DAY, Acknowledgement(refused=[refusal(item, "customer", city=("Bonn", 20))]))
    ledger.acknowledge("2026-03-04", Acknowledgement(customers={"id:u1": pack(state(plan=("free", 30)))}))
    assert list(ledger.refusals()) == [NEXT_DAY]


def test_refusals_are_found_by_day_and_by_reason(ledger: Ledger) -> None:
    other = Refusal("b", "event", "too large", "", "{}", "id:u2", call="event")
    ledger.acknowledge(DAY, Acknowledgement(refused=[refusal("a"), other]))
    ledger.acknowledge(NEXT_DAY, Acknowledgement(refused=[refusal("c")]))
    assert ledger.refusals() == {DAY: [refusal("a"), other], NEXT_DAY: [refusal("c")]}
    assert ledger.refusals(reason="invalid name") == {DAY: [refusal("a")], NEXT_DAY: [refusal("c")]}
    assert ledger.refusals(DAY, "too large") == {DAY: [other]}
    assert ledger.refusals(NEXT_DAY) == {NEXT_DAY: [refusal("c")]}
    assert ledger.open_refusals(reason="invalid name") == [("invalid name", 2, DAY, NEXT_DAY)]
    assert ledger.open_refusals(DAY, "too large") == [("too large", 1, DAY, DAY)]


def test_answers_that_are_recorded_together_are_recorded_as_if_one_after_another(ledger: Ledger) -> None:
    event, item = new_id(), upsert_id("id:u1", 0)
    ledger._commit(
        [
            (
                DAY,
                Acknowledgement(event_ids=pack_ids([event]).tobytes(), refused=[refusal(item, "customer", plan=("pro", 10))]),
            ),
            (NEXT_DAY, Acknowledgement(ids_to_close=lambda: [item], customers={"id:u1": pack(state(plan=("free", 30)))})),
            (NEXT_DAY, Acknowledgement(customers={"id:u1": pack(state(plan=("pro", 20), city=("Bonn", 20)))})),
        ]
    )
    assert (ledger.totals(DAY).events, ledger.totals(NEXT_DAY).new_customers) == (1, 1)
    assert ledger.open_refusals() == []  # the second answer is newer than what the first refuses
    assert ledger.states(["id:u1"]) == {"id:u1": state(plan=("free", 30), city=("Bonn", 20))}


class CutOffError(Exception):
    pass


def test_upserts_are_in_flight_until_all_of_their_day_is_sent(ledger: Ledger) -> None:
    first, second = pack(state(plan=("free", 10), city=("Bonn", 20))), pack(state(plan=("pro", 30)))
    with ledger.hold_delivery_lock(lambda: None):
        with ledger.sending(DAY, all_of_it=True):
            ledger.put_in_flight(DAY, {"id:u1": first})
            assert ledger.in_flight() == {DAY: {customer_id("id:u1"): first}}
        assert ledger.in_flight() == {}
        with suppress(CutOffError), ledger.sending(DAY, all_of_it=True):
            ledger.put_in_flight(DAY, {"id:u1": first, "id:u2": second})
            raise CutOffError
        with ledger.sending(DAY, all_of_it=False), ledger.sending(NEXT_DAY, all_of_it=False):
            ledger.put_in_flight(DAY, {"id:u1": second})
            ledger.put_in_flight(NEXT_DAY, {"id:u1": second})
        [(day, states)] = ledger.in_flight().items()
        of_u1, of_u2 = (unpack(states[customer_id(key)]) for key in ("id:u1", "id:u2"))
        assert (day, of_u1, of_u2) == (DAY, state(plan=("pro", 30), city=("Bonn", 20)), state(plan=("pro", 30)))
        with ledger.sending(DAY, all_of_it=True):
            pass
    assert ledger.in_flight() == {}


def test_a_delivery_without_the_lock_puts_nothing_in_flight(ledger: Ledger) -> None:
    with pytest.raises(LockLost):
        ledger.put_in_flight(DAY, {"id:u1": pack(state(plan=("free", 10)))})
    assert ledger.in_flight() == {}


def test_customers_of_whom_nothing_was_acknowledged_are_unknown(ledger: Ledger) -> None:
    ledger.acknowledge(DAY, Acknowledgement(customers={"id:u1": pack(state(plan=("pro", 20)))}))
    assert ledger.unknown(["id:u1", "id:u2", "email:u1"]) == ["id:u2", "email:u1"]


def test_odd_text_is_kept_as_it_is(ledger: Ledger) -> None:
    odd = Refusal("a", "event", "a\0b", "é\0" * 5000, r'{"a":"\\x00\\0"}', r"id:\x00\0" + "\0" + "ü" * 2000)
    ledger.acknowledge(DAY, Acknowledgement(refused=[odd]))
    assert ledger.refused(DAY) == {"a": odd}


def test_an_event_takes_at_most_24_bytes_and_a_customers_attributes_at_most_200(database_url: str) -> None:
    ledger, people, events = Ledger(database_url), 10_000, 50_000
    empty = size(database_url)
    for start in range(0, people, 1000):
        values = {name: (str(start), 1_700_000_000 + number % 2) for number, name in enumerate("abcdefgh")}
        ledger.acknowledge(DAY, Acknowledgement(customers={f"id:u{start + n}": pack(state(**values)) for n in range(1000)}))
    with_people = size(database_url)
    for _ in range(0, events, 1000):
        ledger.acknowledge(DAY, Acknowledgement(event_ids=pack_ids([new_id() for _ in range(1000)]).tobytes()))
    assert (with_people - empty) / people <= 200
    assert (size(database_url) - with_people) / events <= 24


def size(url: str) -> int:
    """The database's bytes; SQLite's file after what was written ahead is in it."""
    engine = connect(url, sa.MetaData())
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        if engine.dialect.name == "postgresql":
            return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar() or 0)
    with closing(sqlite3.connect(str(engine.url.database))) as plain:
        plain.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return Path(str(engine.url.database)).stat().st_size


@pytest.mark.parametrize(
    "query",
    [
        "SELECT event_ids FROM deliveries WHERE day = '2026-03-02'",
        "SELECT * FROM refusals WHERE day = '2026-03-02'",
        "SELECT * FROM refusals WHERE item_id IN ('a', 'b') AND (day = '2026-03-02' OR kind = 'event')",
        "SELECT * FROM refusals WHERE customer = '1' AND kind = 'customer'",
        "SELECT * FROM customer_states WHERE customer = '1'",
    ],
)
def test_look_ups_go_by_an_index_whatever_the_history(database_url: str, query: str) -> None:
    Ledger(database_url)
    engine = connect(database_url, sa.MetaData())
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SET enable_seqscan = off")
            lines = connection.exec_driver_sql(f"EXPLAIN {query}").scalars().all()
            assert not [line for line in lines if "Seq Scan" in line]
        else:
            steps = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all()
            assert [step for step in steps if step[3].startswith("SEARCH")] == steps


def test_the_ledger_holds_no_data_of_people(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    ledger.acknowledge(DAY, Acknowledgement(customers={"email:someone@example.com": pack(state(name=("Someone", 1)))}))
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"example.com" not in written
    assert b"Someone" not in written


@given(states)
def test_a_state_survives_packing(known: State) -> None:
    assert unpack(pack(known)) == known


def test_r17_of_two_values_set_at_one_time_that_of_the_later_answer_stands() -> None:
    assert merge(state(plan=("free", 10)), state(plan=("pro", 10))) == state(plan=("pro", 10))


@pytest.mark.parametrize(("seconds", "kept"), [(-1, 0), (0, 0), (2**32 - 1, 2**32 - 1), (2**32, 2**32 - 1)])
def test_a_time_that_four_bytes_do_not_hold_is_kept_as_the_nearest_that_they_do(seconds: int, kept: int) -> None:
    known = {b"name!": (b"value!", state_time(seconds))}
    assert unpack(pack(known)) == {b"name!": (b"value!", kept)}


@given(states, states, states)
def test_r17_merging_in_any_grouping_keeps_the_newest(first: State, second: State, third: State) -> None:
    merged = merge(merge(first, second), third)
    assert merged == merge(first, merge(second, third))
    for name, (_, time) in merged.items():
        assert time == max(known[name][1] for known in (first, second, third) if name in known)
