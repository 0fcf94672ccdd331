"""Captures a person's events as PostHog stores them: with what ingestion adds, and the person's properties at that time."""

import random
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

Event = dict[str, Any]
Properties = dict[str, Any]


@dataclass
class Person:
    """A user of the product. properties: those that PostHog has by now."""

    number: int
    name: str
    email: str
    anonymous_id: str
    signup_day: int | None
    browser: tuple[str, str]
    campaign: dict[str, str]
    mobile: bool
    plan: str = "free"
    distinct_id: str = ""
    properties: Properties = field(default_factory=dict)


@dataclass
class Session:
    """Consecutive events of one person, some seconds apart. clock: the last event's time; delay: until PostHog stores one."""

    person: Person
    clock: datetime
    rng: random.Random
    client: Properties
    delay: timedelta = timedelta(seconds=1)
    events: list[Event] = field(default_factory=list)

    def capture(self, event: str, /, **properties: Any) -> None:
        """Adds an event as PostHog stores it, and updates the person's properties."""
        self.clock += timedelta(milliseconds=self.rng.randrange(400, 90_000))
        stored = _with_person_properties({**self.client, **properties})
        person = self.person
        person.properties = {**stored.get("$set_once", {}), **person.properties, **stored.get("$set", {})}
        for name in stored.get("$unset", ()):
            person.properties.pop(name, None)
        distinct_id = person.distinct_id or person.anonymous_id
        late = self.delay + timedelta(microseconds=self.rng.randrange(900_000))
        self.events.append(stored_event(self.rng, event, distinct_id, self.clock, late, stored, person.properties))


def _with_person_properties(properties: Properties) -> Properties:
    """Adds what ingestion adds: browser, system and campaign are set on the person, the first ones as `$initial_`."""
    known = {name: value for name, value in properties.items() if name in ("$browser", "$os", "$app_version")}
    known |= {name: value for name, value in properties.items() if name.startswith("utm_")}
    if not known:
        return properties
    first = {f"$initial_{name.removeprefix('$')}": value for name, value in known.items()}
    return {
        **properties,
        "$set": {**known, **properties.get("$set", {})},
        "$set_once": {**first, **properties.get("$set_once", {})},
    }


def stored_event(
    rng: random.Random,
    event: str,
    distinct_id: str,
    at: datetime,
    delay: timedelta,
    properties: Properties,
    person_properties: Properties,
) -> Event:
    """Returns an event that PostHog stores `delay` later, with a copy of the person's properties. Times are ISO text in UTC."""
    return {
        "uuid": _uuid7(at, rng),
        "event": event,
        "distinct_id": distinct_id,
        "timestamp": _text(at),
        "created_at": _text(at + delay),
        "properties": properties,
        "person_properties": dict(person_properties),
    }


def _uuid7(at: datetime, rng: random.Random) -> str:
    milliseconds = int(at.timestamp() * 1000)
    bits = milliseconds << 80 | 0x7 << 76 | rng.getrandbits(12) << 64 | 0b10 << 62 | rng.getrandbits(62)
    return str(UUID(int=bits))


def _text(at: datetime) -> str:
    return f"{at:%Y-%m-%dT%H:%M:%S.%f}Z"
