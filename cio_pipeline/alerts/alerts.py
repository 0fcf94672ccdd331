"""What is told of what happened in Dagster: each trouble once, and once that it is over. Pure: nothing is read or sent here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

MOST_OPEN = 100
"""So many troubles are remembered until they are over; of the oldest beyond, the end is not told."""

Kind = Literal["run", "check", "day"]


class Alert(BaseModel, frozen=True):
    """One sentence to tell. `page` is where to look, below the address of Dagster's UI."""

    kind: Kind
    is_over: bool
    text: str
    partitions: tuple[str, ...] = ()
    page: str = ""


class Trouble(BaseModel):
    """A trouble that has been told, and what to tell when it is over.

    days: those that must be delivered until then. job: without days, the job that must succeed until then.
    """

    over: Alert
    days: list[str] = []
    job: str = ""


@dataclass(frozen=True)
class RunFailed:
    """A run has failed, and Dagster will not run it again.

    root: the first run of those that were run again. undelivered: those of its days that it has not delivered.
    """

    at: float
    page: str
    root: str
    job: str
    days: tuple[str, ...]
    undelivered: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class RunSucceeded:
    """A run of the job has succeeded."""

    at: float
    job: str


@dataclass(frozen=True)
class Delivered:
    """A day is delivered, after it was over."""

    at: float
    day: str


@dataclass(frozen=True)
class CheckEvaluated:
    """A check has passed or failed, of a partition if it is one of partitions."""

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


def alerts_of(events: Iterable[Event], troubles: dict[str, Trouble]) -> tuple[list[Alert], dict[str, Trouble]]:
    """The alerts that the events call for, in their order in time, and the troubles that are open after them.

    troubles: those that were open before, by key. A trouble that is open is not told again, but a run that fails is:
    somebody has started it since.
    """
    alerts, left = list[Alert](), dict(troubles)
    for event in sorted(events, key=lambda event: event.at):
        alerts += _of(event, left)
    return alerts, dict(list(left.items())[-MOST_OPEN:])


def _of(event: Event, left: dict[str, Trouble]) -> list[Alert]:
    """The event's alerts; `left` gets its trouble, or loses those that it ends."""
    match event:
        case RunFailed():
            left.pop(f"run {event.root}", None)
            return _once(f"run {event.root}", *_failed(event), left)
        case DayOverdue():
            return _once(f"day {event.day}", *_overdue(event), left)
        case CheckEvaluated(passed=False):
            return _once(_key(event), *_check_failed(event), left)
        case CheckEvaluated():
            return [left.pop(key).over for key in (_key(event),) if key in left]
        case RunSucceeded():
            return [left.pop(key).over for key, trouble in list(left.items()) if trouble.job == event.job and not trouble.days]
        case Delivered():
            return [left.pop(key).over for key in _ended_by(event.day, left)]


def _once(key: str, alert: Alert, trouble: Trouble, left: dict[str, Trouble]) -> list[Alert]:
    if key in left:
        return []
    left[key] = trouble
    return [alert]


def _ended_by(day: str, left: dict[str, Trouble]) -> list[str]:
    """The troubles that end with the day's delivery; of those that need others, too, the day is taken off."""
    ended = [key for key, trouble in left.items() if trouble.days == [day]]
    for key, trouble in left.items():
        if key not in ended and day in trouble.days:
            left[key] = trouble.model_copy(update={"days": [one for one in trouble.days if one != day]})
    return ended


def _failed(event: RunFailed) -> tuple[Alert, Trouble]:
    days = _named(event.days)
    what = f"The run of {days}" if days else f"A run of {event.job}"
    over = f"Over: all of {days} is delivered now" if event.undelivered else f"Over: {event.job} has succeeded"
    alert = Alert(kind="run", is_over=False, text=f"{what} failed: {event.reason}", partitions=event.days, page=event.page)
    end = Alert(kind="run", is_over=True, text=f"{over}; a run had failed.", partitions=event.days, page=event.page)
    return alert, Trouble(over=end, days=list(event.undelivered), job=event.job)


def _overdue(event: DayOverdue) -> tuple[Alert, Trouble]:
    text = f"{event.day} was not delivered by {event.by} (CIO_DELIVERED_BY): {event.reason}"
    alert = Alert(kind="day", is_over=False, text=text, partitions=(event.day,), page=event.page)
    end = Alert(kind="day", is_over=True, text=f"Over: {event.day} is delivered now.", partitions=(event.day,))
    return alert, Trouble(over=end, days=[event.day])


def _check_failed(event: CheckEvaluated) -> tuple[Alert, Trouble]:
    check = f"check {event.check}{f' of {event.partition}' if event.partition else ''}"
    days, reason = (event.partition,) if event.partition else (), f": {event.reason}" if event.reason else "."
    alert = Alert(kind="check", is_over=False, text=f"The {check} failed{reason}", partitions=days, page=event.page)
    end = Alert(kind="check", is_over=True, text=f"Over: the {check} passes again.", partitions=days, page=event.page)
    return alert, Trouble(over=end)


def _key(event: CheckEvaluated) -> str:
    return f"check {event.check} {event.partition or ''}"


def _named(days: tuple[str, ...]) -> str:
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}" if days else ""
