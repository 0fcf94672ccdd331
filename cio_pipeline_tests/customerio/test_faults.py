"""Whatever the service does, the workspace and the ledger end up as without faults, in a bounded number of requests."""

from __future__ import annotations

import random
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from cio_pipeline.customerio import batches as items
from cio_pipeline.customerio.client import TrackClient
from cio_pipeline.http import retry as http
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.state.ledger import Ledger
from cio_pipeline_tests.customerio.clock import Clock
from cio_pipeline_tests.deliveries import deliver
from cio_pipeline_tests.rules.streams import Frames, event, tables

DAY = "2026-03-02"
KINDS: list[Any] = [
    *(("status", status, {}) for status in (408, 429, 500, 502, 503, 504, 520)),
    ("status", 429, {"Retry-After": "2"}),
    "reset-before",
    "reset-after",
]
CHILD = """
import sys
from cio_pipeline_tests.customerio import test_faults
test_faults.child(*sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def many_small_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch.setattr)


def small(put: Any) -> None:
    """Four lanes and some 60 requests, of a day that is small all the same."""
    put(items, "MAX_REQUEST_BYTES", 4_000)
    put(items, "LANE_BYTES", 40_000)


def stream(seed: int) -> Frames:
    """Some 600 events of 40 people, a few of which Customer.io refuses."""
    rnd = random.Random(seed)
    made = tables(
        *(
            {
                **event(
                    f"e{n}", f"u{rnd.randrange(40)}", f"2026-03-02T{rnd.randrange(24):02d}:00Z", set_={"n": n}, d="x" * 200
                ),
                "uuid": str(uuid.UUID(int=rnd.getrandbits(128))),
            }
            for n in range(600)
        )
    )
    refused = made.events["operation"].str.replace('"name":"e7"', '"name":""').str.replace('"name":"e300"', '"name":""')
    return made._replace(events=made.events.assign(operation=refused))


def held(workspace: customerio.CustomerioServer) -> dict[str, Any]:
    """Everybody, with their attributes and events in the order they came."""
    people = [person.to_dict() for person in workspace.workspace.people()]
    return {person["identifiers"]["id"]: (person["attributes"], person["events"]) for person in people}


def known(ledger: Ledger, made: Frames) -> tuple[Any, ...]:
    states = ledger.states(made.customers["key"])
    return ledger.delivered(DAY).tolist(), states, {name: vars(refusal) for name, refusal in ledger.refused(DAY).items()}


def until_done(made: Frames, ledger: Ledger, client: TrackClient, runs: int = 8) -> int:
    for run in range(1, runs + 1):
        try:
            deliver(DAY, [made.shard], ledger, client)
        except http.Unavailable:
            continue
        return run
    raise AssertionError(f"not done in {runs} runs")


def without_faults(made: Frames, folder: Path) -> tuple[dict[str, Any], tuple[Any, ...], int]:
    ledger = Ledger(f"sqlite:///{folder / 'reference.db'}")
    with customerio.serve() as workspace:
        until_done(made, ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
        return held(workspace), known(ledger, made), len(workspace.requests)


@pytest.mark.parametrize("seed", range(8))
def test_faults_up_to_40_percent_change_nothing_of_the_outcome(seed: int, tmp_path: Path, clock: Clock) -> None:
    made, rnd = stream(seed), random.Random(seed)
    people, remembered, requests = without_faults(made, tmp_path)
    rate, faults = rnd.choice([0.1, 0.25, 0.4]), 0

    def fault(number: int, path: str) -> Any:
        nonlocal faults
        if rnd.random() >= rate:
            return None
        faults += 1
        return rnd.choice(KINDS)

    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    with customerio.serve(faults=fault) as workspace:
        until_done(made, ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
        assert held(workspace) == people
        assert known(ledger, made) == remembered
        assert len(workspace.requests) <= 1.3 * requests + faults


@pytest.mark.parametrize(
    "garble", ["no errors", "no index", "wrong index", "one without", "twice", "no JSON", "as 200", "as 400"]
)
def test_an_answer_that_does_not_say_which_item_is_bad_costs_requests_and_no_item(
    garble: str, tmp_path: Path, workspace: customerio.CustomerioServer
) -> None:
    made = stream(1)
    people, remembered, _ = without_faults(made, tmp_path)
    answer = workspace.answer

    def garbled(*request: Any) -> Any:
        status, body = answer(*request)
        errors = body.get("errors")
        if not errors:
            return status, body
        bare = [{"reason": error["reason"], "field": error["field"]} for error in errors]
        return {
            "no errors": (207, {}),
            "no index": (207, {"errors": bare}),
            "wrong index": (207, {"errors": [{**error, "batch_index": 99_999} for error in errors]}),
            "one without": (207, {"errors": [*errors, *bare]}),
            "twice": (207, {"errors": [*errors, *errors]}),
            "no JSON": (207, "an answer"),
            "as 200": (200, body),
            "as 400": (400, {"errors": bare}),
        }[garble]

    workspace.answer = garbled  # type: ignore[method-assign, assignment]
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    until_done(made, ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
    assert {who: attributes for who, (attributes, _) in held(workspace).items()} == {
        who: had for who, (had, _) in people.items()
    }
    for who, (_, events) in people.items():
        assert held(workspace)[who][1] == events
    assert known(ledger, made)[:2] == remembered[:2]
    assert set(ledger.refused(DAY)) == set(remembered[2])


@pytest.mark.parametrize("fault", [(207, {}), (400, {"meta": {"error": "malformed"}}), (413, {})])
@pytest.mark.parametrize("size", [10, 40_000], ids=["batch", "v1"])
def test_an_item_alone_is_not_refused_by_a_passing_answer(
    size: int, fault: Any, tmp_path: Path, workspace: customerio.CustomerioServer
) -> None:
    answer, posts = workspace.answer, 0

    def fails_twice(*request: Any) -> Any:
        nonlocal posts
        posts += 1
        return fault if posts <= 2 else answer(*request)

    workspace.answer = fails_twice  # type: ignore[method-assign, assignment]
    made, ledger = tables(event(d="x" * size)), Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    until_done(made, ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
    assert ledger.refusals() == {}
    assert workspace.workspace.totals() == {"people": 1, "events": 1}


def test_413_is_halved_like_400_and_one_item_alone_is_refused(tmp_path: Path, workspace: customerio.CustomerioServer) -> None:
    made = stream(2)
    answer = workspace.answer
    workspace.answer = lambda *request: (413, {}) if len(request[3]) > 2_000 else answer(*request)  # type: ignore[method-assign]
    ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
    until_done(made, ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
    assert len(ledger.delivered(DAY)) == len(made.events) - 2
    assert len(ledger.refused(DAY)) == 2


def test_an_answer_that_is_late_is_asked_for_again_and_nothing_doubles(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cio_pipeline.customerio.client.TIMEOUT_SECONDS", (1, 0.2))
    made, late = stream(3), {3, 4, 20}
    people, remembered, _ = without_faults(made, tmp_path)
    with customerio.serve(faults=lambda number, path: "slow" if number in late else None, slow_seconds=0.5) as workspace:
        ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
        until_done(made, ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
        assert known(ledger, made) == remembered
        assert {who: len(events) for who, (_, events) in held(workspace).items()} == {w: len(e) for w, (_, e) in people.items()}


def test_a_service_that_is_down_gets_few_requests_over_all_lanes_and_keeps_what_was_acknowledged(
    tmp_path: Path, clock: Clock
) -> None:
    made = stream(4)
    with customerio.serve(faults=lambda number, path: ("status", 503, {}) if number > 20 else None) as workspace:
        ledger = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")
        with pytest.raises(
            http.Unavailable, match=r"^Customer\.io \(127\.0\.0\.1\) could not be reached in 9 tries: it answered 503\.$"
        ):
            deliver(DAY, [made.shard], ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
        assert len(workspace.requests) <= 20 + 4 * 9
        assert clock.now > 60, "that many tries took more than a minute"
        assert len(ledger.delivered(DAY)) == workspace.workspace.totals()["events"] > 0
        workspace.faults = None
        until_done(made, ledger, TrackClient(workspace.url, "sandbox", "sandbox-key", 1000))
        assert len(ledger.delivered(DAY)) == len(made.events) - 2


def child(url: str, ledger: str) -> None:
    """Delivers, in a process that can be killed."""
    small(setattr)
    made = stream(5)
    until_done(made, Ledger(ledger), TrackClient(url, "sandbox", "sandbox-key", 1000))


def test_killed_at_any_moment_a_rerun_goes_on_where_it_stopped(tmp_path: Path) -> None:
    made = stream(5)
    people, remembered, requests = without_faults(made, tmp_path)
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    running: list[subprocess.Popen[bytes]] = []

    def kill_at(number: int, path: str) -> None:
        """The request is taken, and nobody is left to hear so."""
        if number in (1, 9, 40):
            running[-1].kill()
            running[-1].wait()

    with customerio.serve(faults=kill_at) as workspace:
        for outcome in (-9, -9, -9, 0):
            running.append(subprocess.Popen([sys.executable, "-c", CHILD, workspace.url, url]))
            assert running[-1].wait(120) == outcome
        assert held(workspace) == people
        assert known(Ledger(url), made) == remembered
        assert len(workspace.requests) <= 1.3 * requests + 3 * items.MAX_LANES
