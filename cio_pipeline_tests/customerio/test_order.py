"""In whatever order days are delivered, and whatever came late, the workspace ends up the same (R17)."""

from __future__ import annotations

import random
import uuid
from collections.abc import Callable
from contextlib import nullcontext, suppress
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import orjson
import pytest

from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.deliveries import deliver, redeliver
from cio_pipeline_tests.examples import TIMES
from cio_pipeline_tests.rules.streams import event, tables

DAYS = [f"2026-03-{day:02d}" for day in range(1, 15)]
Day = list[dict[str, Any]]
Taken = Callable[[bytes], bytes]
"""What a Customer.io makes of a batch's body."""


class CutOffError(Exception):
    """The process was killed."""


def stream(seed: int) -> dict[str, Day]:
    """Events of five people that set a few attributes over and over, by day."""
    rnd = random.Random(seed)
    return {
        day: [
            {
                **event(f"e{n}", f"u{rnd.randrange(5)}", f"{day}T{rnd.randrange(24):02d}:{n:02d}Z", set_=some(rnd)),
                "uuid": str(uuid.UUID(int=rnd.getrandbits(128))),
            }
            for n in range(rnd.randrange(12))
        ]
        for day in DAYS
    }


def some(rnd: random.Random) -> dict[str, Any]:
    """Few attributes and values, so that a value often returns."""
    return {name: rnd.choice([1, 2, None]) for name in rnd.sample(["plan", "city"], rnd.randrange(3))}


def state(days: dict[str, Day], steps: list[tuple[str, int]], ledger: Ledger, taken: Taken) -> dict[str, Any]:
    """The workspace after these deliveries, each of a day's first so many events; if the number is negative, of as many, but
    cut off before any answer is recorded."""
    with customerio.serve() as server:
        batch = server.workspace.batch
        server.workspace.batch = lambda body: batch(taken(body))  # type: ignore[method-assign]
        client = TrackClient(server.url, "sandbox", "sandbox-key", 1000)
        for day, first in steps:
            given = days[day][: abs(first)]
            if given:
                made = tables(*given)
                ends = patch.object(Ledger, "acknowledge", side_effect=CutOffError) if first < 0 else nullcontext()
                with suppress(CutOffError), ends:
                    deliver(day, [made.shard], ledger, client)
        people = [person.to_dict() for person in server.workspace.people()]
    return {who["identifiers"]["id"]: (who["attributes"], sorted(map(str, who["events"]))) for who in people}


def cut_off(rnd: random.Random) -> list[tuple[str, int]]:
    """Deliveries of which many are cut off, and at the end one of each whole day."""
    steps = [(-99, 3), (-99,), (3, -6, 9), (3, -6, -9), (-99, 99), (99,), (99,)]
    begun = [(day, first) for day in rnd.sample(DAYS, len(DAYS)) for first in rnd.choice(steps)]
    return begun + [(day, 99) for day in rnd.sample(DAYS, len(DAYS))]


def by_time() -> Taken:
    """A Customer.io in which the latest time of an attribute wins, as the sandbox's is."""
    return lambda body: body


def by_arrival() -> Taken:
    """A Customer.io in which the last upsert to arrive wins."""
    arrivals = count(1)

    def at_arrival(body: bytes) -> bytes:
        items = orjson.loads(body)["batch"]
        return orjson.dumps(
            {"batch": [{**item, "timestamp": next(arrivals)} if item["action"] == "identify" else item for item in items]}
        )

    return at_arrival


def older_upserts_dropped() -> Taken:
    """A Customer.io that drops an upsert whole where it has had a later one of the customer."""
    latest: dict[str, int] = {}

    def is_taken(item: dict[str, Any]) -> bool:
        key, at = str(item["identifiers"]), item["timestamp"]
        if item["action"] != "identify":
            return True
        latest[key] = max(at, latest.get(key, at))
        return bool(at == latest[key])

    return lambda body: orjson.dumps({"batch": [item for item in orjson.loads(body)["batch"] if is_taken(item)]})


@pytest.mark.parametrize("model", [by_time, by_arrival, older_upserts_dropped])
@pytest.mark.parametrize("seed", range(4, 4 + TIMES))  # in 4, a value returns while another is in flight
def test_days_in_any_order_with_events_that_come_late_end_up_the_same(
    seed: int, model: Callable[[], Taken], tmp_path: Path
) -> None:
    days, rnd = stream(seed), random.Random(seed)
    whole = [(day, 99) for day in DAYS]
    parts = [(day, count) for day in DAYS for count in (rnd.randrange(12), 99)]
    late = sorted(parts, key=lambda part: (part[1], rnd.random()))
    orders = [whole, whole[::-1], rnd.sample(whole, len(whole)), late, *(cut_off(rnd) for _ in range(5))]
    states = [
        state(days, order, Ledger(f"sqlite:///{tmp_path / f'{number}.db'}"), model()) for number, order in enumerate(orders)
    ]
    assert any(attributes for attributes, _ in states[0].values())
    assert all(found == states[0] for found in states)


def on(day: str, hour: int, plan: str) -> dict[str, Any]:
    """An event of u1 that sets their plan."""
    return {**event(plan, at=f"{day}T{hour:02d}:00Z", set_={"plan": plan}), "uuid": str(uuid.UUID(int=hour))}


@pytest.mark.parametrize(
    "steps",
    [[(DAYS[0], 1), (DAYS[0], -2), (DAYS[0], 3)], [(DAYS[0], 1), (DAYS[0], -2), (DAYS[0], -3), (DAYS[0], 3)]],
    ids=["then sent", "then cut off, too, and sent"],
)
def test_a_value_that_returns_while_another_is_in_flight_is_sent(steps: list[tuple[str, int]], tmp_path: Path) -> None:
    days = {DAYS[0]: [on(DAYS[0], 9, "free"), on(DAYS[0], 10, "pro"), on(DAYS[0], 11, "free")]}
    found = state(days, steps, Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"), by_time())
    assert found["u1"][0]["plan"] == "free"


def test_a_value_that_returns_on_a_later_day_while_another_is_in_flight_is_sent(tmp_path: Path) -> None:
    first, second, third = DAYS[:3]
    days = {first: [on(first, 9, "free")], second: [on(second, 10, "pro")], third: [on(third, 11, "free")]}
    steps = [(first, 1), (second, -1), (third, 1), (second, 1)]
    found = state(days, steps, Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"), by_time())
    assert found["u1"][0]["plan"] == "free"


def test_a_redelivery_that_was_cut_off_is_not_undone_by_an_older_day(tmp_path: Path) -> None:
    older, newer = DAYS[:2]
    before, made = tables(on(older, 9, "free")), tables(on(newer, 10, "pro"))
    ledger, bad = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}"), (207, {"errors": [{"batch_index": 0, "reason": "invalid"}]})
    with customerio.serve() as server:
        client, batch = TrackClient(server.url, "sandbox", "sandbox-key", 1000), server.workspace.batch
        with patch.object(server.workspace, "batch", lambda body: bad if b'"plan":"pro"' in body else batch(body)):
            deliver(newer, [made.shard], ledger, client)
        with suppress(CutOffError), patch.object(Ledger, "acknowledge", side_effect=CutOffError):
            redeliver(newer, list(ledger.refused(newer).values()), ledger, client)
        deliver(newer, [made.shard], ledger, client)
        deliver(older, [before.shard], ledger, client)
        person = server.workspace.person("u1")
    assert person is not None
    assert person.values["plan"] == "pro"
    assert ledger.refusals() == {}
