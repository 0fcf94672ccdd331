"""Decides which alerts the events in Dagster call for: one for each problem, and one when it is over. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

MAX_OPEN = 100
"""At most this many alerts wait for the end of their problem; the end of older ones is not reported."""

Kind = Literal["run", "check", "day"]


class Alert(BaseModel, frozen=True):
    """One sentence to send. `page` is the path of a page in Dagster's UI."""

    kind: Kind
    is_resolved: bool
    text: str
    partitions: tuple[str, ...] = ()
    page: str = ""


class OpenAlert(BaseModel):
    """An alert whose problem is not over yet.

    resolved: the alert to send when it is; days: those that must be delivered first; job: if there are no days, the job that
    must succeed first.
    """

    resolved: Alert
    days: list[str] = []
    job: str = ""


@dataclass(frozen=True)
class RunFailed:
    """A run has failed, and Dagster will not retry it.

    root: the first of a run and its retries; undelivered: its days that are not delivered; is_repeated: the job runs again by
    itself, so that one alert is enough until one of its runs succeeds.
    """

    at: float
    page: str
    root: str
    job: str
    days: tuple[str, ...]
    undelivered: tuple[str, ...]
    reason: str
    is_repeated: bool = False


@dataclass(frozen=True)
class RunSucceeded:
    """A run of the job has succeeded."""

    at: float
    job: str


@dataclass(frozen=True)
class Delivered:
    """A day is delivered completely, after it was over."""

    at: float
    day: str


@dataclass(frozen=True)
class CheckEvaluated:
    """A check has passed or failed. partition: None for a check of a whole asset."""

    at: float
    check: str
    partition: str | None
    passed: bool
    reason: str
    page: str


@dataclass(frozen=True)
class DayOverdue:
    """A day is not delivered by CIO_DELIVERED_BY."""

    at: float
    day: str
    by: str
    reason: str
    page: str


Event = RunFailed | RunSucceeded | Delivered | CheckEvaluated | DayOverdue


def alerts_of(events: Iterable[Event], open_before: dict[str, OpenAlert]) -> tuple[list[Alert], dict[str, OpenAlert]]:
    """The alerts that the events call for, by time, and those that are open after them, by key.

    An open alert is not sent again, except for a run that fails again, since somebody has started it again.
    """
    alerts, still_open = list[Alert](), dict(open_before)
    for event in sorted(events, key=lambda event: event.at):
        alerts += _alerts_for(event, still_open)
    return alerts, dict(list(still_open.items())[-MAX_OPEN:])


def _alerts_for(event: Event, still_open: dict[str, OpenAlert]) -> list[Alert]:
    """The event's alerts. `still_open` gets the one that it opens, and loses those that it ends."""
    match event:
        case RunFailed(is_repeated=True):
            return _once(f"job {event.job}", *_failed(event), still_open)
        case RunFailed():
            still_open.pop(f"run {event.root}", None)
            return _once(f"run {event.root}", *_failed(event), still_open)
        case DayOverdue():
            return _once(f"day {event.day}", *_overdue(event), still_open)
        case CheckEvaluated(passed=False):
            return _once(_key(event), *_check_failed(event), still_open)
        case CheckEvaluated():
            passing = still_open.pop(_key(event), None)
            return [passing.resolved] if passing else []
        case RunSucceeded():
            return [
                still_open.pop(key).resolved
                for key, alert in list(still_open.items())
                if alert.job == event.job and not alert.days
            ]
        case Delivered():
            return [still_open.pop(key).resolved for key in _ended_by(event.day, still_open)]


def _once(key: str, alert: Alert, opened: OpenAlert, still_open: dict[str, OpenAlert]) -> list[Alert]:
    if key in still_open:
        return []
    still_open[key] = opened
    return [alert]


def _ended_by(day: str, still_open: dict[str, OpenAlert]) -> list[str]:
    """The keys of the alerts that end with the day's delivery. The day is removed from those that also wait for other days."""
    ended = [key for key, alert in still_open.items() if alert.days == [day]]
    for key, alert in still_open.items():
        if key not in ended and day in alert.days:
            still_open[key] = alert.model_copy(update={"days": [other for other in alert.days if other != day]})
    return ended


def _failed(event: RunFailed) -> tuple[Alert, OpenAlert]:
    days = _days_text(event.days)
    what = f"The run of {days}" if days else f"A run of {event.job}"
    resolved = f"Resolved: all of {days} is delivered now" if event.undelivered else f"Resolved: {event.job} has succeeded"
    alert = Alert(kind="run", is_resolved=False, text=f"{what} failed: {event.reason}", partitions=event.days, page=event.page)
    end = Alert(kind="run", is_resolved=True, text=f"{resolved}; a run had failed.", partitions=event.days, page=event.page)
    return alert, OpenAlert(resolved=end, days=list(event.undelivered), job=event.job)


def _overdue(event: DayOverdue) -> tuple[Alert, OpenAlert]:
    text = f"{event.day} was not delivered by {event.by} (CIO_DELIVERED_BY): {event.reason}"
    alert = Alert(kind="day", is_resolved=False, text=text, partitions=(event.day,), page=event.page)
    end = Alert(kind="day", is_resolved=True, text=f"Resolved: {event.day} is delivered now.", partitions=(event.day,))
    return alert, OpenAlert(resolved=end, days=[event.day])


def _check_failed(event: CheckEvaluated) -> tuple[Alert, OpenAlert]:
    check = f"check {event.check}{f' of {event.partition}' if event.partition else ''}"
    days, reason = (event.partition,) if event.partition else (), f": {event.reason}" if event.reason else "."
    alert = Alert(kind="check", is_resolved=False, text=f"The {check} failed{reason}", partitions=days, page=event.page)
    end = Alert(kind="check", is_resolved=True, text=f"Resolved: the {check} passes again.", partitions=days, page=event.page)
    return alert, OpenAlert(resolved=end)


def _key(event: CheckEvaluated) -> str:
    return f"check {event.check} {event.partition or ''}"


def _days_text(days: tuple[str, ...]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else ""
