"""hold_recent_events over random streams: runs that hold, then a whole run, leave what one whole run leaves."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.customerio.selection import DeliveryOptions
from cio_pipeline.pipeline.derive import derive_day
from cio_pipeline.state.ledger import Ledger
from cio_pipeline.tables.tables import Tables
from cio_pipeline_tests.days import Days
from cio_pipeline_tests.deliveries import deliver, shards_of
from cio_pipeline_tests.examples import examples
from cio_pipeline_tests.rules.random_streams import DAY, MOMENTS, options, streams
from cio_pipeline_tests.rules.random_streams import START as FIRST
from cio_pipeline_tests.rules.reference import expected
from cio_pipeline_tests.test_rules_hold import START, Draw, Workspace, days_of, derived, exactly, latest


def held(product: Days, day: str, cut: int) -> Tables:
    """The day's tables as a run sends them that holds the events from a time on (microseconds)."""
    into = Tables(f"{product.tables.root}/until-{cut}")
    until = datetime.fromtimestamp(cut / 1_000_000, UTC)
    derive_day(day, product.tables, product.identities, product.options, until=until, into=into)
    return into


@examples(5)
@given(data=st.data())
def test_held_runs_and_then_a_whole_one_leave_what_one_whole_run_leaves(data: Draw) -> None:
    stream, chosen = data.draw(streams(data.draw(st.booleans(), "hostile"), seconds_apart=True)), data.draw(options)
    cuts = data.draw(st.lists(st.tuples(st.integers(0, stream.days), st.sampled_from(MOMENTS)), min_size=1, max_size=2), "cuts")
    ordinary = DeliveryOptions(allow_consent=chosen.allow_consent)
    times = sorted(FIRST + day * DAY + moment for day, moment in cuts)
    with derived(stream, chosen, data) as product:
        workspace, ledger = Workspace(data.draw(st.booleans(), "by time")), Ledger(f"sqlite:///{product.tables.root}/ledger.db")
        for cut in times:
            before = expected([event for event in stream.events if event.at < cut], START, chosen)
            for day in days_of(stream):
                deliver(day, shards_of(held(product, day, cut), day), ledger, workspace, options=ordinary)
            assert exactly(workspace.people) == exactly(latest(before)), "nothing that only the held events bring"
            sent = [event["id"] for events in before.events.values() for event in events]
            assert sorted(workspace.event_ids) == sorted(sent)
        for day in days_of(stream):
            deliver(day, shards_of(product.tables, day), ledger, workspace, options=ordinary)
    wanted = expected(stream.events, START, chosen)
    assert exactly(workspace.people) == exactly(latest(wanted))
    assert sorted(workspace.event_ids) == sorted(event["id"] for events in wanted.events.values() for event in events)
