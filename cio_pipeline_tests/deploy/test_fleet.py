"""A backfill of 30 days over several machines, one of which is lost in the middle, as is PostgreSQL for a moment: the workspace
is that of one machine that nothing happened to.

Each seed is another month, other moments and another way to be lost. It takes six minutes a seed or more: `make test-fleet`.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from dagster._core.storage.tags import ROOT_RUN_ID_TAG

from cio_pipeline.defs.partitions import days_in_tags
from cio_pipeline.sandbox.customerio import server as customerio
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.sandbox.posthog.product import days as product_days
from cio_pipeline.sandbox.processes import Sandbox
from cio_pipeline.state.postgresql import MAX_CONNECTIONS
from cio_pipeline_tests.deploy.fleet import FOUND, Connections, Fleet, fleet, open_connections, session_of

pytestmark = pytest.mark.fleet

START = date(2026, 3, 1)
DAYS = [str(START + timedelta(days=day)) for day in range(30)]
ASSETS = ["posthog_events", "identities", "identity_history", "customers", "events", "rejects", "customerio_delivery"]
RUN_SECONDS = 1800
MAX_BACKFILLS = 2
RULES = {"CIO_IDENTIFY_BY_EMAIL": "Yes", "CIO_ANONYMOUS_USERS": "identified", "CIO_STITCH_ANONYMOUS_DAYS": "7"}
"""Settings under which what is sent of a day depends on other days."""


@dataclass
class Sent:
    """What came to Customer.io: how often each event, and which machines (sessions) had requests under way at once."""

    events: Counter[str] = field(default_factory=Counter)
    at_once: set[tuple[int, ...]] = field(default_factory=set)


@contextmanager
def watched_customerio() -> Iterator[tuple[customerio.CustomerioServer, Sent]]:
    """A Customer.io that takes its time to answer, and what is sent to it."""
    sent, of_thread = Sent(), threading.local()
    under_way: Counter[int] = Counter()
    with customerio.serve(faults=lambda _, path: "slow" if path.endswith("batch") else None, slow_seconds=0.3) as server:
        take, process = server.answer, server.process_request_thread

        def from_port(request: Any, address: Any) -> None:
            of_thread.machine = session_of(address[1])
            process(request, address)

        def noted(method: str, path: str, authorization: str, body: bytes) -> tuple[int, dict[str, Any]]:
            if not path.endswith("batch"):
                return take(method, path, authorization, body)
            under_way[of_thread.machine] += 1
            try:
                if len(machines := tuple(sorted(+under_way))) > 1:
                    sent.at_once.add(machines)
                batch = orjson.loads(body)["batch"]
                sent.events.update(item["id"] for item in batch if "id" in item)
                return take(method, path, authorization, body)
            finally:
                under_way[of_thread.machine] -= 1

        server.answer, server.process_request_thread = noted, from_port  # type: ignore[method-assign, assignment]
        yield server, sent


def people(server: customerio.CustomerioServer, *, in_order: bool) -> dict[str, Any]:
    """Everybody of a workspace by id, or else email, with what stands there. in_order: also of when each attribute is, which
    is of the first day that sent the value, so it depends on the order of days."""
    found = {}
    for person in server.workspace.people():
        key = person.identifiers.get("id") or person.identifiers["email"]
        attributes = {name: (one.value, one.set_at if in_order else 0) for name, one in person.attributes.items()}
        found[key] = {"attributes": attributes, "activities": sorted(repr(one) for one in person.activities)}
    return found


def different(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Who differs, and in what."""
    keys = sorted(key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key))
    return [f"{key}: {_changed(found.get(key), expected.get(key))}" for key in keys]


def _changed(found: Any, expected: Any) -> Any:
    if found is None or expected is None:
        return "missing" if found is None else "not expected"
    names = found["attributes"].keys() | expected["attributes"].keys()
    values = {name: (found["attributes"].get(name), expected["attributes"].get(name)) for name in names}
    activities = set(found["activities"]) ^ set(expected["activities"])
    return {name: both for name, both in values.items() if both[0] != both[1]}, sorted(activities)


def on_one_machine(source: posthog.PostHog, folder: Path, rules: dict[str, str], *, in_order: bool) -> dict[str, Any]:
    """The workspace after one run of all days by the command line, from files."""
    folder.mkdir()
    with customerio.serve() as server:
        environment = Sandbox(source.url, server.url).environment(folder, START, **rules, CIO_REFUSED_SHARE="100%")
        command = [sys.executable, "-m", "cio_pipeline", "run", "--from", DAYS[0], "--to", DAYS[-1]]
        ended = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return people(server, in_order=in_order)


def days_as_begun(runs: list[Any]) -> list[str]:
    """The first day of each run of days, in the order in which these began; one that is tried again, as it did first."""
    tags = [(run["startTime"], {tag["key"]: tag["value"] for tag in run["tags"]}) for run in runs if run["startTime"]]
    first = sorted((began, days_in_tags(of)[0]) for began, of in tags if ROOT_RUN_ID_TAG not in of)
    return [day for _, day in first if day]


def is_retry(run: Any) -> bool:
    """Whether it does again what another run began: its days are delivered after later ones."""
    return any(tag["key"] == ROOT_RUN_ID_TAG for tag in run["tags"])


def in_two_layers(days: list[str]) -> bool:
    """Whether the days go from the oldest on twice: extraction, then delivery."""
    return days == sorted(set(days)) * 2


@dataclass
class Mishaps:
    """What happens in the middle: a machine, or only its run, is killed while it is at work; and PostgreSQL restarts."""

    fleet: Fleet
    rng: random.Random
    started: float = field(default_factory=time.monotonic)
    done: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        first, second = sorted((self.rng.uniform(10, 60), self.rng.uniform(10, 60)))
        self.due = list(zip((first, second), self.rng.sample([self.kill, self.restart], 2), strict=True))

    def look(self) -> None:
        """Has happen what is due."""
        if self.due and time.monotonic() - self.started >= self.due[0][0] and (what := self.due[0][1]()):
            self.due.pop(0)
            self.done.append(what)

    def kill(self) -> str:
        at_work = [machine for machine in self.fleet.machines if machine.is_at_work()]
        if not at_work:
            return ""
        machine, only_the_run = self.rng.choice(at_work), self.rng.random() < 0.5
        machine.kill(only_the_run=only_the_run)
        if not only_the_run:
            self.fleet.machines.remove(machine)
            self.fleet.add_machine()
        return f"the run of {machine.name} killed" if only_the_run else f"{machine.name} lost"

    def restart(self) -> str:
        self.fleet.database.stop()
        time.sleep(self.rng.uniform(0, 3))
        self.fleet.database.start()
        return "PostgreSQL restarted"


def finished(found: Fleet, backfill: str) -> Any:
    """The backfill, once it has ended."""
    answer = found.ask(FOUND, id=backfill)
    if answer is None:
        return None
    ended = answer["partitionBackfillOrError"]
    return ended if ended["status"].startswith(("COMPLETED", "FAILED", "CANCELED")) else None


@pytest.mark.parametrize("seed", range(1, 11))
def test_a_month_over_machines_that_are_lost_is_the_month_of_one_machine(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    rules, one_after_another = (RULES if seed % 2 else {}), seed % 4 in (0, 1)
    with posthog.serve(product_days(seed, START, len(DAYS), 40)) as source, watched_customerio() as (server, sent):
        settings = Sandbox(source.url, server.url).environment(
            tmp_path, START, **rules, CIO_DAYS_PER_RUN=str(rng.choice((8, 10, 15))), CIO_WORKERS="2"
        )
        seen, status, runs = Connections(), "", list[Any]()
        with fleet(tmp_path, settings, one_after_another) as found:
            started, mishaps = time.monotonic(), Mishaps(found, rng)
            for backfills in range(1, MAX_BACKFILLS + 1):
                backfill = found.backfill(ASSETS, DAYS)

                def ended(backfill: str = backfill) -> Any:
                    seen.sample(found.database.url)
                    mishaps.look()
                    return finished(found, backfill)

                last = found.until(ended, RUN_SECONDS)
                runs, status = last["runs"], last["status"]
                print(f"seed {seed}: backfill {backfills} {status} {Counter(run['status'] for run in runs)}")
                if status == "COMPLETED_SUCCESS":
                    break
            left = [one for one in open_connections(found.database.url) if one[0] == "ledger"]
        print(f"seed {seed}: {time.monotonic() - started:.0f} s, {mishaps.done}, {rules=}, {one_after_another=},")
        print(f"  {len(sent.events)} events, {sum(sent.events.values()) - len(sent.events)} sent again, {seen}")
        assert status == "COMPLETED_SUCCESS"
        in_order = one_after_another and backfills == 1 and not any(is_retry(run) for run in runs)
        alone = on_one_machine(source, tmp_path / "one", rules, in_order=in_order)
        assert different(people(server, in_order=in_order), alone) == []
    assert len(mishaps.done) == 2
    assert not sent.at_once
    assert not left
    assert seen.most_of_a_machine["ledger"] <= MAX_CONNECTIONS
    if one_after_another and backfills == 1:
        assert in_two_layers(days_as_begun(runs))
