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
from cio_pipeline_tests.deliveries import deliver
from cio_pipeline_tests.examples import TIMES
from cio_pipeline_tests.rules.streams import event, tables

DAYS = [f"2026-03-{day:02d}" for day in range(1, 15)]
Day = list[dict[str, Any]]
Taken = Callable[[bytes], bytes]
"""What a Customer.io makes of a batch's body."""


CUT_OFF = -1


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
    return {name: rnd.choice([1, 2, 3, None]) for name in rnd.sample(["plan", "city", "age", "seats"], rnd.randrange(4))}


def state(days: dict[str, Day], steps: list[tuple[str, int]], ledger: Ledger, taken: Taken) -> dict[str, Any]:
    """The workspace after these deliveries, each of a day's first so many events, or of all but cut off before any answer is
    recorded."""
    with customerio.serve() as server:
        batch = server.workspace.batch
        server.workspace.batch = lambda body: batch(taken(body))  # type: ignore[method-assign]
        client = TrackClient(server.url, "sandbox", "sandbox-key", 1000)
        for day, first in steps:
            given = days[day] if first == CUT_OFF else days[day][:first]
            if given:
                made = tables(*given)
                ends = patch.object(Ledger, "acknowledge", side_effect=CutOffError) if first == CUT_OFF else nullcontext()
                with suppress(CutOffError), ends:
                    deliver(day, [made.shard], ledger, client)
        people = [person.to_dict() for person in server.workspace.people()]
    return {who["identifiers"]["id"]: (who["attributes"], sorted(map(str, who["events"]))) for who in people}


def cut_off(rnd: random.Random) -> list[tuple[str, int]]:
    """Deliveries of which many are cut off, and at the end one of each whole day."""
    steps = [(CUT_OFF, 3), (CUT_OFF,), (99,), (99,)]
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
@pytest.mark.parametrize("seed", range(TIMES))
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
