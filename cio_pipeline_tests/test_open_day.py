"""R22 over random streams: parts of days that are not over, whatever of them has arrived, leave what the whole days leave."""

from __future__ import annotations

import json
import tempfile
from contextlib import ExitStack
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.rules.options import Options
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.deliveries import deliver, shards_of
from cio_pipeline_tests.examples import examples
from cio_pipeline_tests.rules.random_streams import Stream, options, streams
from cio_pipeline_tests.rules.reference import Event, expected
from cio_pipeline_tests.test_rules_hold import START, Draw, Workspace, days_of, derived, exactly, frame, latest


def with_one_email_each(stream: Stream) -> Stream:
    """The stream, but nobody's email changes: where emails are keys, R22 excepts changes that come late."""

    def settled(who: str, text: str | None, name: str | None) -> str | None:
        found = json.loads(text) if text else None
        given = found if name is None else found and found.get(name)
        if isinstance(given, dict) and "email" in given:
            given["email"] = who if "@" in who else f"{who.replace('-', '')}@example.com"
        return text if found is None else json.dumps(found)

    events = [
        event._replace(
            properties=settled(event.distinct_id, event.properties, "$set"),
            person_properties=settled(event.distinct_id, event.person_properties, None),
        )
        for event in stream.events
    ]
    return replace(stream, events=events)


def derived_so_far(folder: str, day: str, arrived: list[Event], chosen: Options) -> Days:
    """The open day of what has arrived, over the days before it."""
    product = Days(folder, replace(chosen, day_is_open=True))
    for one in sorted({HISTORY_PARTITION, day, *(event.day for event in arrived if START <= event.day < day)}):
        product.extract(
            one, frame([event for event in arrived if (event.day if event.day >= START else HISTORY_PARTITION) == one])
        )
        product.learn(one)
    product.derive(day)
    return product


@examples(3)
@given(data=st.data())
def test_r22_parts_of_days_and_whole_days_in_any_order_leave_what_the_whole_days_leave(data: Draw) -> None:
    """A part has any of the events of its day and the days before it; the whole day has all, and comes after its parts."""
    stream, chosen = data.draw(streams(hostile=False)), data.draw(options)
    if chosen.identify_by_email:
        stream = with_one_email_each(stream)
    wanted, ordinary = expected(stream.events, START, chosen), DeliveryOptions(allow_consent=chosen.allow_consent)
    runs = data.draw(st.lists(st.sampled_from(days_of(stream)), min_size=1, max_size=3), "parts of the days")
    order = [*runs, *data.draw(st.permutations(days_of(stream)), "whole days")]
    if data.draw(st.booleans(), "a part of a later day comes between the whole days"):
        order.insert(len(runs) + 1, order[-1])
    with derived(stream, chosen, data) as product, ExitStack() as stack:
        workspace, ledger = Workspace(data.draw(st.booleans(), "by time")), Ledger(f"sqlite:///{product.tables.root}/ledger.db")
        for number, day in enumerate(order):
            tables = product.tables
            if day in order[number + 1 :]:
                arrived = [event for event in stream.events if event.day < START or data.draw(st.booleans(), "has arrived")]
                folder = stack.enter_context(tempfile.TemporaryDirectory())
                tables = derived_so_far(folder, day, arrived, chosen).tables
            deliver(day, shards_of(tables, day), ledger, workspace, options=ordinary)
    assert exactly(workspace.people) == exactly(latest(wanted))
    assert sorted(workspace.event_ids) == sorted(event["id"] for events in wanted.events.values() for event in events)
