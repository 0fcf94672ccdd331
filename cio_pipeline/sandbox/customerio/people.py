"""A person in Customer.io: identifiers, attributes with their times, and the activity log."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

FAILURE = "Attribute Update Failure"


@dataclass
class Attribute:
    """An attribute's value (None once cleared) and the time of the update that set it."""

    value: Any
    set_at: int


@dataclass(frozen=True)
class Activity:
    """One line of a person's activity log: an event, page or screen, or an attribute update that failed."""

    type: str
    name: str
    timestamp: int
    data: dict[str, Any]
    id: str | None = None


@dataclass
class Person:
    """A profile: its identifiers, attributes and activities, in the order received."""

    identifiers: dict[str, str]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    activities: list[Activity] = field(default_factory=list)

    @property
    def events(self) -> list[Activity]:
        """The activities that are events, pages and screens."""
        return [activity for activity in self.activities if activity.type != FAILURE]

    @property
    def values(self) -> dict[str, Any]:
        """The attributes that are set, by name."""
        return {name: stored.value for name, stored in self.attributes.items() if stored.value is not None}

    def to_dict(self) -> dict[str, Any]:
        """Returns the person as `GET /sandbox/people` shows it."""
        keys = ("id", "name", "type", "timestamp", "data")
        events = [{key: getattr(event, key) for key in keys} for event in self.events]
        return {"identifiers": self.identifiers, "attributes": self.values, "events": events}

    def copy(self) -> Person:
        """Returns a copy, which later updates do not change."""
        return replace(
            self,
            identifiers=dict(self.identifiers),
            attributes={name: replace(stored) for name, stored in self.attributes.items()},
            activities=list(self.activities),
        )

    def searchable(self) -> str:
        """Returns the text that the People page searches, in lower case: identifiers and name."""
        name = self.attributes.get("name")
        return "\n".join([*self.identifiers.values(), str(name.value if name else "")]).lower()
