"""R12: the ids of events."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.rules.columns import factorize
from cio_pipeline.rules.event_ids import ulids

UUID = "018f3173-7000-7421-831e-e849e8bb6ffe"
DAY = 86_400_000_000


def ids_of(times: Sequence[int], names: Sequence[str], distinct_ids: Sequence[str], uuids: Sequence[str]) -> list[str]:
    arrays = (pa.array(column, pa.large_string()).cast(pa.large_binary()) for column in (distinct_ids, uuids))
    found = ulids(np.array(times, dtype=np.int64), factorize(pd.Series(names, dtype="str")), *arrays)
    return [one.decode() for one in found.to_pylist()]


def ulid(time: int = 0, name: str = "visit", distinct_id: str = "u1", event_uuid: str = UUID) -> str:
    return ids_of([time], [name], [distinct_id], [event_uuid])[0]


def test_r12_an_id_begins_with_the_uuid_s_first_48_bits() -> None:
    found = ulid()
    assert (len(found), found[:9]) == (26, "01HWRQ6W0")
    assert ulid(event_uuid="ffffffff-ffff-ffff-ffff-ffffffffffff")[:10] == "7" + "Z" * 9
    assert ids_of([], [], [], []) == []


def test_r12_the_same_event_has_the_same_id_wherever_it_stands() -> None:
    times, names, ids, uuids = [0, DAY], ["visit", "order"], ["u1", "u2"], [UUID, str(uuid.UUID(int=5))]
    both = ids_of(times, names, ids, uuids)
    assert both == [ulid(), ulid(DAY, "order", "u2", uuids[1])]
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
    assert len(set(ids_of([day * DAY for day in times], names, ids, uuids))) == len(events)


def test_r12_the_ids_are_the_same_where_the_texts_begin_within_the_bytes_of_others() -> None:
    """So it is in a shard that was read from a part of a spill file; Arrow's `ascii_lower` takes wrong bytes then."""
    texts = [str(uuid.UUID(int=number << 64)).upper() for number in range(5)]
    whole = pa.array(texts, pa.large_string())
    offsets = np.frombuffer(whole.buffers()[1], dtype=np.int64)[2:].copy()
    part = pa.Array.from_buffers(pa.large_binary(), 3, [None, pa.py_buffer(offsets), whole.buffers()[2]])
    whose = pa.array(["u1"] * 3, pa.large_string()).cast(pa.large_binary())
    found = ulids(np.zeros(3, dtype=np.int64), factorize(pd.Series(["visit"] * 3, dtype="str")), whose, part)
    assert [one.decode() for one in found.to_pylist()] == ids_of([0] * 3, ["visit"] * 3, ["u1"] * 3, texts[2:])
