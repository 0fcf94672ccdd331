"""Delivery to a real HTTP server: packed, item by item, remembered, and never back in time."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.customerio.batches import FRAME_BYTES, request_ranges
from cio_pipeline.customerio.client import NotDelivered, TrackClient
from cio_pipeline.customerio.delivery import preview
from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.http import retry as http
from cio_pipeline.rules.limits import MAX_REQUEST_BYTES
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.customerio.clock import Clock
from cio_pipeline_tests.deliveries import deliver
from cio_pipeline_tests.rules.streams import Frames, event, tables

DAY, NEXT_DAY = "2026-03-02", "2026-03-03"
Workspace = customerio.CustomerioServer


def client(url: str, api_key: str = "sandbox-key") -> TrackClient:
    return TrackClient(url, "sandbox", api_key, requests_per_second=1000)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def send(workspace: Workspace, ledger: Ledger, made: Frames, day: str = DAY) -> Counter[str]:
    return deliver(day, [made.shard], ledger, client(workspace.url)).counts


def attributes(workspace: Workspace, distinct_id: str = "u1") -> dict[str, Any]:
    person = workspace.workspace.person(distinct_id)
    assert person is not None
    return dict(person.values)


def posts(workspace: Workspace) -> list[str]:
    return [request.path for request in workspace.requests if request.method == "POST"]


def test_people_and_events_arrive_in_one_request(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(event("signed up", set_={"plan": "pro"}), event("$pageview", "u2", url="/"))
    counts = send(workspace, ledger, made)
    assert (counts["upserts sent"], counts["events sent"]) == (2, 2)
    assert posts(workspace) == ["/api/v2/batch"]
    assert attributes(workspace) == {"plan": "pro", "identifier": "u1"}


def test_a_second_delivery_sends_nothing_and_a_late_event_alone(workspace: Workspace, ledger: Ledger) -> None:
    first = [event("one", set_={"plan": "pro"})]
    send(workspace, ledger, tables(*first))
    counts = send(workspace, ledger, tables(*first))
    assert (counts["upserts sent"], counts["events sent"], counts["events delivered before"]) == (0, 0, 1)
    assert len(posts(workspace)) == 1
    counts = send(workspace, ledger, tables(*first, event("late")))
    assert (counts["upserts sent"], counts["events sent"]) == (0, 1)


def test_a_refused_item_is_kept_with_its_reason_and_the_rest_arrives(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(event("good"), event("bad"), event("good too"))
    broken = made.events["operation"].str.replace('"name":"bad"', '"name":""')
    made = made._replace(events=made.events.assign(operation=broken))
    counts = send(workspace, ledger, made)
    assert counts["events sent"] == 2
    [refusal] = ledger.refused(DAY).values()
    assert refusal.kind == "event"
    assert json.loads(refusal.operation)["name"] == ""
    assert sum(count for name, count in counts.items() if name.startswith("refused: ")) == 1
    assert send(workspace, ledger, made)["refused before: required name"] == 1
    assert len(posts(workspace)) == 1


def test_a_batch_refused_whole_is_halved_until_the_bad_item_is_alone(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(*(event(f"e{n}", f"u{n}") for n in range(8)))
    unreadable = made.events["operation"].str.replace('"name":"e5"', '"name":')
    counts = send(workspace, ledger, made._replace(events=made.events.assign(operation=unreadable)))
    assert (counts["upserts sent"], counts["events sent"]) == (8, 7)
    assert len(ledger.refused(DAY)) == 1


@pytest.mark.parametrize("fault", [("status", 503, {}), ("status", 429, {"Retry-After": "7"}), "reset-before", "reset-after"])
def test_passing_faults_are_tried_again_and_nothing_doubles(ledger: Ledger, clock: Clock, fault: Any) -> None:
    def twice(number: int, path: str) -> Any:
        return fault if number <= 2 else None

    with customerio.serve(faults=twice) as workspace:
        counts = send(workspace, ledger, tables(event("one"), event("two")))
        assert counts["events sent"] == 2
        assert workspace.workspace.totals()["events"] == 2
    waits = [wait for wait in clock.rests if wait > 0.1]
    assert len(waits) == 2
    if isinstance(fault, tuple) and fault[2]:
        assert waits == [7.0, 7.0]


def test_a_service_that_stays_down_is_an_end_with_one_sentence(ledger: Ledger, clock: Clock) -> None:
    with customerio.serve(faults=lambda number, path: ("status", 500, {})) as workspace:
        with pytest.raises(
            http.Unavailable, match=r"Customer\.io \(127\.0\.0\.1\) could not be reached in 9 tries: it answered 500"
        ):
            send(workspace, ledger, tables(event()))
        assert len(workspace.requests) == 9


@pytest.mark.parametrize("status", [401, 403, 302])
def test_wrong_settings_stop_at_once_and_are_named(ledger: Ledger, status: int) -> None:
    with customerio.serve(faults=lambda number, path: ("status", status, {})) as workspace:
        with pytest.raises(NotDelivered, match=r"^CUSTOMERIO_"):
            send(workspace, ledger, tables(event()))
        assert len(workspace.requests) <= 2, "the second one asks whether it is the keys"


def test_a_wrong_key_is_found_before_anything_is_sent(workspace: Workspace) -> None:
    with pytest.raises(NotDelivered, match="CUSTOMERIO_SITE_ID and CUSTOMERIO_API_KEY are not accepted") as refused:
        client(workspace.url, api_key="wrong-key").check()
    assert "wrong-key" not in str(refused.value)


def test_r17_an_older_day_leaves_newer_attributes_alone(workspace: Workspace, ledger: Ledger) -> None:
    newer = event("new", at="2026-03-03T10:00Z", set_={"plan": "pro"})
    older = event("old", at="2026-03-02T10:00Z", set_={"plan": "free", "city": "Bonn"})
    send(workspace, ledger, tables(newer), NEXT_DAY)
    counts = send(workspace, ledger, tables(older))
    assert attributes(workspace) == {"plan": "pro", "city": "Bonn", "identifier": "u1"}
    assert counts["attributes newer in Customer.io"] == 2
    counts = send(workspace, ledger, tables(older))
    assert (counts["upserts sent"], counts["upserts with nothing new"]) == (0, 1)


def test_r17_an_unchanged_value_still_counts_as_set_later(workspace: Workspace, ledger: Ledger) -> None:
    first = event("a", at="2026-03-01T10:00Z", set_={"plan": "pro"})
    same = event("b", at="2026-03-03T10:00Z", set_={"plan": "pro"})
    between = event("c", at="2026-03-02T10:00Z", set_={"plan": "free"})
    send(workspace, ledger, tables(first), "2026-03-01")
    send(workspace, ledger, tables(same), NEXT_DAY)
    send(workspace, ledger, tables(between), DAY)
    assert attributes(workspace)["plan"] == "pro"


def test_an_event_too_large_for_a_batch_goes_by_the_v1_call_in_its_turn(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(
        event("first", "u/1?é"),
        event("large", "u/1?é", at="2026-03-02T11:00Z", d="x" * 50_000),
        event("last", "u/1?é", at="2026-03-02T12:00Z"),
    )
    send(workspace, ledger, made)
    assert posts(workspace) == ["/api/v2/batch", "/api/v1/customers/u%2F1%3F%C3%A9/events", "/api/v2/batch"]
    person = workspace.workspace.person("u/1?é")
    assert person is not None
    assert [found.name for found in person.events] == ["first", "large", "last"]


def test_20000_events_of_2000_people_take_at_most_25_requests(workspace: Workspace, ledger: Ledger) -> None:
    stream = [event("order placed", f"u{n % 2000}", total=n, items=["book"] * 20, set_={"plan": "pro"}) for n in range(20_000)]
    counts = send(workspace, ledger, tables(*stream))
    assert counts["events sent"] == 20_000
    assert len(posts(workspace)) <= 25


sizes = st.lists(st.tuples(st.integers(1, 32_000) | st.integers(474_900, 475_100), st.sampled_from([False] * 3 + [True])))


def packed_one_by_one(items: list[tuple[int, bool]]) -> list[list[tuple[int, bool]]]:
    """As a reader of the limits would pack them."""
    made: list[list[tuple[int, bool]]] = []
    batch: list[tuple[int, bool]] = []
    for item in items:
        body = FRAME_BYTES + sum(size for size, _ in [*batch, item]) + len(batch)
        if batch and (item[1] or body > MAX_REQUEST_BYTES):
            made.append(batch)
            batch = []
        batch.append(item)
        if item[1]:
            made.append(batch)
            batch = []
    return [*made, batch] if batch else made


@given(sizes)
def test_packing_keeps_every_item_in_order_within_475000_bytes(items: list[tuple[int, bool]]) -> None:
    lengths = np.array([size for size, _ in items], int), np.array([large for _, large in items], bool)
    assert [items[start:end] for start, end in request_ranges(*lengths)] == packed_one_by_one(items)


def test_every_event_uuid_is_sent_once_over_several_lanes(
    workspace: Workspace, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.batches.LANE_BYTES", 50_000)
    stream = [
        {**event(f"e{n}", f"u{n % 50}", at=f"2026-03-02T10:{n // 60:02d}:{n % 60:02d}Z"), "uuid": str(uuid.uuid4())}
        for n in range(900)
    ]
    counts = send(workspace, ledger, tables(*stream))
    assert counts["events sent"] == 900
    assert workspace.workspace.totals()["events"] == 900
    for n in range(50):
        person = workspace.workspace.person(f"u{n}")
        assert person is not None
        assert [int(found.name[1:]) for found in person.events] == list(range(n, 900, 50))


def test_an_empty_day_sends_nothing(workspace: Workspace, ledger: Ledger) -> None:
    made = tables(event(" "))
    assert isinstance(made.customers, pd.DataFrame)
    assert send(workspace, ledger, made)["events sent"] == 0
    assert posts(workspace) == []


@pytest.mark.parametrize("number", [10**400, -(2**70)])
def test_a_number_beyond_every_float_is_looked_at_listed_and_sent_exactly(
    workspace: Workspace, ledger: Ledger, number: int
) -> None:
    made, options = tables(event("a", n=number, set_={"n": number})), DeliveryOptions(Suppressed(frozenset({"nobody"})))
    shards = [made.shard]
    assert preview(DAY, shards, ledger, options, set()).counts["events to send"] == 1
    accepted: list[Any] = []

    def answer(method: str, path: str, _: Any, body: bytes) -> tuple[int, Any]:
        accepted.extend(json.loads(body)["batch"])
        return 200, {}

    workspace.answer = answer  # type: ignore[method-assign, assignment]
    assert deliver(DAY, shards, ledger, client(workspace.url), options=options).counts["events sent"] == 1
    assert [item["attributes"]["n"] for item in accepted] == [number, number]


def test_a_reason_that_is_cut_within_a_character_is_kept(
    workspace: Workspace, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ascii_json = SimpleNamespace(dumps=lambda value: json.dumps(value).encode(), loads=json.loads)
    monkeypatch.setattr(customerio, "orjson", ascii_json)
    answer = {"errors": [{"batch_index": 0, "reason": "bad \ud83d", "message": "cut \ud83d"}]}
    workspace.answer = lambda *request: (207, answer)  # type: ignore[method-assign]
    send(workspace, ledger, tables(event()))
    assert {refusal.reason for refusal in ledger.refused(DAY).values()} == {"bad ?"}
