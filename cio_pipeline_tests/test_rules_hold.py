"""The rules hold for any stream, any options, any order of partitions and any number of shards.

What the days' tables hold is compared with `connector/reference.py`, which reads the rules one event at a time.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.rules.options import Options
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.deliveries import deliver, shards_of
from cio_pipeline_tests.examples import examples
from cio_pipeline_tests.rules.random_streams import Stream, options, streams
from cio_pipeline_tests.rules.reference import Event, Expected, expected

START = "2026-03-02"
Draw = st.DataObject


def days_of(stream: Stream) -> list[str]:
    return [str(date.fromisoformat(START) + timedelta(days=number)) for number in range(stream.days)]


def frame(events: list[Event]) -> pd.DataFrame:
    columns = ["microseconds", "uuid", "event", "distinct_id", "properties", "person_properties"]
    table = pd.DataFrame(events, columns=columns, dtype=object)
    return table.assign(timestamp=pd.to_datetime(table["microseconds"].astype("int64"), unit="us", utc=True))


@contextmanager
def derived(stream: Stream, chosen: Options, data: Draw) -> Iterator[Days]:
    """The stream's days in the product: all of them learned, then derived, both in any order, in any number of shards."""
    with tempfile.TemporaryDirectory() as folder:
        product = Days(folder, chosen)
        for day in (HISTORY_PARTITION, *days_of(stream)):
            events = [event for event in stream.events if (event.day if event.day >= START else HISTORY_PARTITION) == day]
            product.extract(day, frame(events), data.draw(st.integers(1, 3), f"shards of {day}"))
        for day in data.draw(st.permutations([HISTORY_PARTITION, *days_of(stream)]), "learned in the order"):
            product.learn(day)
        for day in data.draw(st.permutations(days_of(stream)), "derived in the order"):
            product.derive(day)
        yield product


def exactly(value: Any) -> str:
    """As text, so that 1, 1.0 and true are three different values."""
    return json.dumps(value, sort_keys=True, indent=1)


def by_id(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(events, key=lambda event: str(event["id"]))


def accounted(day: str, wanted: Expected, stream: Stream) -> tuple[Counter[str], int]:
    """R15 of the reference: the day's events by outcome in its own partition, and how many earlier ones it sends."""
    fates = [(event.day, *wanted.outcomes[event.identity]) for event in stream.events if event.day >= START]
    own = Counter(outcome if partition == day else "filtered" for its_day, outcome, partition in fates if its_day == day)
    return own, sum(fate[0] < day and fate[1:] == ("sent", day) for fate in fates)


@pytest.mark.parametrize("hostile", [False, True], ids=["plain", "hostile"])
@examples(7)
@given(data=st.data())
def test_the_tables_hold_what_the_rules_say(hostile: bool, data: Draw) -> None:
    stream, chosen = data.draw(streams(hostile)), replace(data.draw(options), day_is_open=data.draw(st.booleans(), "open"))
    wanted = expected(stream.events, START, chosen)
    with derived(stream, chosen, data) as product:
        for day in days_of(stream):
            customers = {key: values for (of, key), values in wanted.customers.items() if of == day}
            assert exactly(product.customers(day)) == exactly(customers)
            assert exactly(by_id(product.events(day))) == exactly(by_id(wanted.events[day]))
            assert product.rejects(day) == wanted.rejects[day]
            day_counts = product.counts_by_day[day]
            assert (product.outcomes(day), day_counts.stitched) == accounted(day, wanted, stream)
            assert day_counts.outcomes.total() == product.tables.version("posthog_events", day).rows
            assert day_counts.outcomes["sent"] + day_counts.stitched == product.tables.version("events", day).rows


class CutOffError(Exception):
    """The process is killed, after Customer.io has accepted a request and before the ledger has recorded it."""


class Workspace(TrackClient):
    """A Customer.io that keeps attributes in the order of arrival, or of the upserts' timestamps: which, is not documented."""

    def __init__(self, by_time: bool) -> None:
        super().__init__("http://127.0.0.1", "site", "key", requests_per_second=100_000)
        self.people: dict[str, dict[str, Any]] = {}
        self.event_ids: list[str] = []
        self._by_time = by_time
        self._times: dict[tuple[str, str], int] = {}
        self.requests_until_cut_off = -1

    def batch(self, operations: Sequence[bytes | memoryview]) -> dict[int, tuple[str, str]]:
        for operation in map(json.loads, map(bytes, operations)):
            [(kind, identifier)] = operation["identifiers"].items()
            if operation["action"] == "identify":
                self._upsert(f"{kind}:{identifier}", operation["attributes"], operation["timestamp"])
            else:
                self.event_ids.append(operation["id"])
        self.requests_until_cut_off -= 1
        if self.requests_until_cut_off == 0:
            raise CutOffError
        return {}

    def _upsert(self, key: str, attributes: dict[str, Any], seconds: int) -> None:
        for name, value in attributes.items():
            if not self._by_time or self._times.get((key, name), 0) <= seconds:
                self.people.setdefault(key, {})[name] = value
                self._times[key, name] = seconds

    def event(self, identifier: str, operation: bytes) -> None:
        self.event_ids.append(json.loads(operation)["id"])


def latest(wanted: Expected) -> dict[str, dict[str, Any]]:
    """R17: each customer's attributes as they were last set, on whatever day."""
    newest: dict[str, dict[str, tuple[Any, int]]] = {}
    for (_, key), attributes in wanted.customers.items():
        person = newest.setdefault(key, {})
        for name, (value, seconds) in attributes.items():
            if name not in person or person[name][1] < seconds:
                person[name] = (value, seconds)
    return {key: {name: value for name, (value, _) in person.items()} for key, person in newest.items()}


@examples(6)
@given(data=st.data())
def test_r17_the_workspace_is_the_same_in_whatever_order_days_are_delivered(data: Draw) -> None:
    """No two events in the same second: that is as fine as the ledger and Customer.io keep the time of an attribute."""
    stream, chosen = data.draw(streams(data.draw(st.booleans(), "hostile"), seconds_apart=True)), data.draw(options)
    wanted = expected(stream.events, START, chosen)
    first = st.lists(st.tuples(st.sampled_from(days_of(stream)), st.integers(0, 3)), max_size=3)
    order = data.draw(first, "delivered first, perhaps more than once, and cut off after so many requests (0: not)")
    then = [(day, 0) for day in data.draw(st.permutations(days_of(stream)), "then in the order")]
    with derived(stream, chosen, data) as product:
        workspace, ledger = Workspace(data.draw(st.booleans(), "by time")), Ledger(f"sqlite:///{product.tables.root}/ledger.db")
        for day, workspace.requests_until_cut_off in (*order, *then):
            shards = shards_of(product.tables, day)
            with suppress(CutOffError):
                deliver(day, shards, ledger, workspace, options=DeliveryOptions(allow_consent=chosen.allow_consent))
    assert exactly(workspace.people) == exactly(latest(wanted))
    sent_once = sorted(event["id"] for events in wanted.events.values() for event in events)
    assert sorted(workspace.event_ids if not any(cut_off for _, cut_off in order) else set(workspace.event_ids)) == sent_once


@examples(6)
@given(data=st.data())
def test_r17_days_that_are_run_whole_in_any_order_leave_the_newest_attributes(data: Draw) -> None:
    """Not even extracted beforehand: who is sent, and under which key, must not depend on what earlier days say."""
    stream = data.draw(streams(hostile=False, seconds_apart=True))
    chosen = Options(anonymous_users="all", identify_by_email=False)
    wanted = latest(expected(stream.events, START, chosen))
    with tempfile.TemporaryDirectory() as folder:
        product, ledger = Days(folder, chosen), Ledger(f"sqlite:///{folder}/ledger.db")
        workspace = Workspace(data.draw(st.booleans(), "by time"))
        product.extract(HISTORY_PARTITION, frame([event for event in stream.events if event.day < START]))
        product.learn(HISTORY_PARTITION)
        for day in data.draw(st.permutations(days_of(stream)), "run in the order"):
            product.extract(day, frame([event for event in stream.events if event.day == day]))
            product.learn(day)
            product.derive(day)
            shards = shards_of(product.tables, day)
            deliver(day, shards, ledger, workspace)
    assert exactly(workspace.people) == exactly(wanted)
