"""Each problem is alerted once, and its end once, however the ticks divide the events."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cio_pipeline.alerts.alerts import (
    MAX_OPEN,
    Alert,
    CheckEvaluated,
    DayOverdue,
    Delivered,
    Event,
    OpenAlert,
    RunFailed,
    RunSucceeded,
    alerts_of,
)

DAYS = [f"2026-03-0{number}" for number in range(1, 6)]


@st.composite
def failed_runs(draw: st.DrawFn) -> RunFailed:
    first = draw(st.integers(0, len(DAYS) - 1))
    days = tuple(draw(st.sampled_from([(), tuple(DAYS[first : first + 3])])))
    undelivered = tuple(day for day in days if draw(st.booleans()))
    root, job = draw(st.sampled_from("abc")), draw(st.sampled_from(["customerio_sync", "redeliver_refused"]))
    return RunFailed(0, f"/runs/{root}", root, job, days, undelivered, "Customer.io is away.")


events = st.one_of(
    failed_runs(),
    st.builds(RunSucceeded, st.just(0.0), st.sampled_from(["customerio_sync", "redeliver_refused"])),
    st.builds(Delivered, st.just(0.0), st.sampled_from(DAYS)),
    st.builds(DayOverdue, st.just(0.0), st.sampled_from(DAYS), st.just("09:00 UTC"), st.just("no run."), st.just("/runs")),
    st.builds(
        CheckEvaluated,
        *(st.just(0.0), st.sampled_from(["nothing_refused", "as_usual"]), st.sampled_from([None, *DAYS[:2]])),
        *(st.booleans(), st.just("12 refused."), st.just("/assets/x")),
    ),
)
streams = st.lists(events, max_size=40).map(lambda found: [replace(one, at=at) for at, one in enumerate(found)])


def told(chunks: list[list[Event]]) -> list[Alert]:
    alerts, open_alerts = list[Alert](), dict[str, OpenAlert]()
    for chunk in chunks:
        found, open_alerts = alerts_of(chunk, open_alerts)
        alerts += found
    return alerts


@given(streams, st.lists(st.integers(0, 40)))
def test_alerts_do_not_depend_on_how_ticks_divide_the_events(stream: list[Event], cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    assert told([stream[start:end] for start, end in zip(bounds, bounds[1:], strict=False)]) == told([stream])


@given(streams)
def test_each_failed_run_is_reported_once_and_only_reported_problems_end(stream: list[Event]) -> None:
    alerts = told([stream])
    failed = [event for event in stream if isinstance(event, RunFailed)]
    assert len([alert for alert in alerts if alert.kind == "run" and not alert.is_resolved]) == len(failed)
    begun, resolved = Counter[str](), Counter[str]()
    for alert in alerts:
        (resolved if alert.is_resolved else begun)[alert.kind] += 1
        assert resolved[alert.kind] <= begun[alert.kind]


@given(streams)
def test_checks_and_days_alternate_between_an_alert_and_its_end(stream: list[Event]) -> None:
    seen: dict[tuple[object, ...], bool] = {}
    for alert in told([stream]):
        if alert.kind != "run":
            about = (alert.kind, alert.partitions, alert.kind == "check" and "nothing_refused" in alert.text)
            assert seen.get(about, True) is not alert.is_resolved
            seen[about] = alert.is_resolved


@given(streams)
def test_no_alert_is_open_once_all_problems_are_over(stream: list[Event]) -> None:
    last = float(len(stream))
    well: list[Event] = [Delivered(last, day) for day in DAYS]
    well += [RunSucceeded(last + 1, job) for job in ("customerio_sync", "redeliver_refused")]
    for check in ("nothing_refused", "as_usual"):
        well += [CheckEvaluated(last + 1, check, day, True, "", "") for day in (None, *DAYS)]
    assert alerts_of([*stream, *well], {})[1] == {}


def test_a_run_is_over_when_the_last_of_its_days_is_delivered() -> None:
    failed = RunFailed(1, "/runs/a", "a", "customerio_sync", tuple(DAYS[:3]), tuple(DAYS[1:3]), "Customer.io is away.")
    alerts = told([[failed], [Delivered(2, DAYS[2]), RunSucceeded(3, "customerio_sync")], [Delivered(4, DAYS[1])]])
    assert [(alert.text, alert.is_resolved, alert.page) for alert in alerts] == [
        ("The run of 2026-03-01 to 2026-03-03 failed: Customer.io is away.", False, "/runs/a"),
        ("Resolved: all of 2026-03-01 to 2026-03-03 is delivered now; a run had failed.", True, "/runs/a"),
    ]


def test_a_run_without_days_is_over_when_its_job_succeeds() -> None:
    failed = RunFailed(1, "/runs/a", "a", "redeliver_refused", (), (), "Customer.io is away.")
    assert [alert.text for alert in told([[failed, RunSucceeded(2, "redeliver_refused")]])] == [
        "A run of redeliver_refused failed: Customer.io is away.",
        "Resolved: redeliver_refused has succeeded; a run had failed.",
    ]


def test_only_the_newest_alerts_are_kept_open() -> None:
    many: list[Event] = [RunFailed(at, "", str(at), "customerio_sync", (), (), "") for at in range(MAX_OPEN + 5)]
    alerts, open_alerts = alerts_of(many, {})
    assert len(alerts) == MAX_OPEN + 5
    assert list(open_alerts) == [f"run {at}" for at in range(5, MAX_OPEN + 5)]
