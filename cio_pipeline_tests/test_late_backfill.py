"""Days that are delivered daily, and the same days at 90 days of age, when PostHog has dropped `$set` (R20): what differs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import pytest

from cio_pipeline.pipeline.extract import extract_day, extract_history
from cio_pipeline.posthog.query import QuerySource
from cio_pipeline.rules.options import Options
from cio_pipeline.sandbox.posthog import product
from cio_pipeline.sandbox.posthog import server as posthog
from cio_pipeline.state.identity_tables import HISTORY_PARTITION
from cio_pipeline_tests.days import Days

FIRST = date(2026, 3, 1)
DAYS = [FIRST + timedelta(days=number) for number in range(5)]
HISTORY_DAYS = 2
"""So many days come before the first partition."""

SET_BY_OTHERS = {"plan", "name", "created_at", "trial_ends_at", "last_invoice", "$app_version"}
"""What events before the first day, or events that are not sent, have set in the product."""


@dataclass
class Workspace:
    """What Customer.io holds: of each customer, each attribute's last value and its time; and the events."""

    people: dict[str, dict[str, tuple[int, Any]]] = field(default_factory=lambda: defaultdict(dict))
    events: dict[str, Any] = field(default_factory=dict)

    def take(self, product: Days, day: str) -> None:
        for key, attributes in product.customers(day).items():
            for name, (value, seconds) in attributes.items():
                if self.people[key].get(name, (0, None))[0] <= seconds:
                    self.people[key][name] = (seconds, value)
        self.events |= {event["id"]: {**event, "personless": None} for event in product.events(day)}


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


@pytest.fixture
def server() -> Iterator[posthog.PostHog]:
    with posthog.serve(product.days(5, FIRST, len(DAYS), visitors_per_day=30)) as running:
        yield running


def delivered(server: posthog.PostHog, folder: Path, options: Options, age: timedelta, again: bool = False) -> Workspace:
    """The days at this age; with `again`, once more, in the same tables, when PostHog has dropped the `$set`."""
    source = QuerySource(server.url, "1", "phx_sandbox", options.event_allowlist, "auto")
    days, found = Days(str(folder), options), Workspace()
    ages = [age, timedelta(days=90)] if again else [age]
    for number, old in enumerate(ages):
        if number:
            server.project.drop_old_sets(midnight(DAYS[-1]) + old)
        start = midnight(DAYS[HISTORY_DAYS])
        extract_history(days.tables, HISTORY_PARTITION, source.history(start), attributes="auto", now=start + old)
        days.learn(HISTORY_PARTITION)
        for day in DAYS[HISTORY_DAYS:]:
            begin, end = midnight(day), midnight(day) + timedelta(days=1)
            events = source.events(begin, end)
            extract_day(days.tables, str(day), events, start=begin, attributes="auto", now=begin + old)
            days.learn(str(day))
        for day in DAYS[HISTORY_DAYS:]:
            days.derive(str(day))
            found.take(days, str(day))
    return found


CHOICES: dict[str, dict[str, Any]] = {
    "by id": {},
    "by email": {"identify_by_email": True},
    "identified": {"anonymous_users": "identified"},
    "emails by email": {"anonymous_users": "emails", "identify_by_email": True},
    "profiles": {"anonymous_users": "profiles", "stitch_anonymous_days": 2},
    "stitched by email": {"anonymous_users": "identified", "identify_by_email": True, "stitch_anonymous_days": 3},
    "allowlist": {"event_allowlist": ("order placed", "signed up"), "identify_by_email": True},
}


def differing(daily: Workspace, late: Workspace, key: str) -> set[str]:
    """The names of attributes that both have, with different values."""
    had, has = daily.people[key], late.people[key]
    return {name for name in had.keys() & has.keys() if had[name][1] != has[name][1]}


@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)
def test_days_that_are_delivered_when_they_are_old_differ_only_in_what_posthog_no_longer_tells(
    server: posthog.PostHog, tmp_path: Path, chosen: dict[str, Any]
) -> None:
    """The differences are those of docs/operations.md, "Days older than 60 days"."""
    options = Options(**chosen)
    daily = delivered(server, tmp_path / "daily", options, timedelta(days=1))
    assert server.project.drop_old_sets(midnight(DAYS[-1]) + timedelta(days=90)) > 200
    late = delivered(server, tmp_path / "late", options, timedelta(days=90))
    assert len(daily.events) > 10
    assert late.events == daily.events
    assert late.people.keys() == daily.people.keys()
    for key, had in daily.people.items():
        has = late.people[key]
        assert had.keys() <= has.keys()
        assert all(has[name][0] >= seconds for name, (seconds, _) in had.items()), "each event brings all attributes again"
        from_set_once = {name for name in has if name.startswith("$initial_")}
        assert has.keys() - had.keys() - from_set_once <= SET_BY_OTHERS
    differ = [name for key in daily.people for name in differing(daily, late, key)]
    assert set(differ) <= {"last_invoice"}, "its two events reached PostHog in another order than they happened"
    assert len(differ) <= 1


@pytest.mark.parametrize("chosen", [CHOICES["stitched by email"], CHOICES["allowlist"]])
def test_days_that_are_run_again_when_they_are_old_change_nothing(
    server: posthog.PostHog, tmp_path: Path, chosen: dict[str, Any]
) -> None:
    options = Options(**chosen)
    daily = delivered(server, tmp_path / "daily", options, timedelta(days=1))
    again = delivered(server, tmp_path / "again", options, timedelta(days=1), again=True)
    assert (again.people, again.events) == (daily.people, daily.events)


def test_a_posthog_that_keeps_every_set_gives_old_days_as_it_gave_them_young(server: posthog.PostHog, tmp_path: Path) -> None:
    daily = delivered(server, tmp_path / "daily", Options(), timedelta(days=1))
    late = delivered(server, tmp_path / "late", Options(), timedelta(days=90))
    assert (late.people, late.events) == (daily.people, daily.events)
