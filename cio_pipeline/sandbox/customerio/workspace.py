"""A Customer.io workspace in memory: its people, and how the calls of the Track API change them."""

import threading
import time
from collections.abc import Callable
from typing import Any

from cio_pipeline.sandbox.customerio.people import FAILURE, Activity, Attribute, Person
from cio_pipeline.sandbox.customerio.track_api import (
    IDENTIFIERS,
    Identifier,
    Identify,
    InvalidRequestError,
    Track,
    parse_batch,
    parse_customer_event,
    parse_item,
)

Answer = tuple[int, dict[str, Any]]


class Workspace:
    """The people of a workspace, and the calls that change them. Threads may share it.

    An email belongs to one person, as in Customer.io: the one who is identified by it, or first had it as an attribute. An
    identify that would set it on a second person answers 200, leaves that person's email as it was, and records an "Attribute
    Update Failure"; all other attributes are set. The sandbox never merges people: where Customer.io would let a new id take
    over the profile that has the email, two people stay visible here.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._people: dict[str, Person] = {}
        self._index: dict[Identifier, Person] = {}
        self._ulids: set[str] = set()
        self._events = 0

    def batch(self, body: bytes) -> Answer:
        """Answers `POST /api/v2/batch`: 200, 207 with the refused items by index, or 400 if it is not a batch."""
        try:
            items = parse_batch(body)
        except InvalidRequestError as refused:
            return 400, {"errors": [refused.error]}
        refusals = ((index, self._accept(item)) for index, item in enumerate(items))
        errors = [{"batch_index": index, **error} for index, error in refusals if error]
        return (207, {"errors": errors}) if errors else (200, {})

    def customer_event(self, identifier: str, body: bytes) -> Answer:
        """Answers `POST /api/v1/customers/{identifier}/events`: one event, page or screen."""
        try:
            operation = parse_customer_event(identifier, body)
        except InvalidRequestError as refused:
            return 400, {"meta": {"error": str(refused)}}
        self._apply(operation)
        return 200, {}

    def people(self) -> list[Person]:
        """Returns a copy of everyone, the last changed first."""
        return self.search("", 0, None)[0]

    def search(self, query: str, start: int, stop: int | None) -> tuple[list[Person], int]:
        """Returns a page of the people whose id, email or name contains the query, and how many there are in all."""
        wanted = query.strip().lower()
        with self._lock:
            newest = reversed(self._people.values())
            found = [person for person in newest if not wanted or wanted in person.searchable()]
            return [person.copy() for person in found[start:stop]], len(found)

    def person(self, text: str) -> Person | None:
        """Returns a copy of the person with this id, email or cio_id (written `cio_...`), if there is one."""
        keys = (("id", text), ("email", text.lower()), ("cio_id", text.removeprefix("cio_")))
        with self._lock:
            found = next((self._index[key] for key in keys if key in self._index), None)
            return found.copy() if found else None

    def totals(self) -> dict[str, int]:
        """Counts the people and events."""
        with self._lock:
            return {"people": len(self._people), "events": self._events}

    def _accept(self, item: Any) -> dict[str, str] | None:
        try:
            operation = parse_item(item)
        except InvalidRequestError as refused:
            return refused.error
        self._apply(operation)
        return None

    def _apply(self, operation: Identify | Track) -> None:
        with self._lock:
            if isinstance(operation, Identify):
                self._identify(operation)
            else:
                self._track(operation)

    def _identify(self, call: Identify) -> None:
        person = self._find(call.identifier, create=not call.update_only)
        if person is None:
            return
        at = int(self._clock()) if call.timestamp is None else call.timestamp
        for name, value in call.attributes.items():
            stored = person.attributes.get(name)
            if stored and at < stored.set_at:
                continue
            if name in IDENTIFIERS and not self._claim(person, name, value):
                person.activities.append(Activity(FAILURE, name, at, {"value": value}))
            elif name not in ("id", "cio_id"):
                person.attributes[name] = Attribute(value, at)

    def _track(self, call: Track) -> None:
        if call.id is not None and call.id in self._ulids:
            return
        person = self._find(call.identifier, create=True)
        if person is None:
            return
        if call.id is not None:
            self._ulids.add(call.id)
        at = int(self._clock()) if call.timestamp is None else call.timestamp
        person.activities.append(Activity(call.type, call.name, at, call.data, call.id))
        self._events += 1

    def _find(self, identifier: Identifier, *, create: bool) -> Person | None:
        """The person with an identifier, moved to the end as the last changed. An unknown cio_id is never created."""
        kind, value = identifier
        person = self._index.get(_key(kind, value))
        if person is None and (not create or kind == "cio_id"):
            return None
        if person is None:
            person = Person({"cio_id": f"{len(self._people) + 1:012x}"})
            self._hold(person, "cio_id", person.identifiers["cio_id"])
            self._hold(person, kind, value)
        cio_id = person.identifiers["cio_id"]
        self._people.pop(cio_id, None)
        self._people[cio_id] = person
        return person

    def _claim(self, person: Person, kind: str, value: Any) -> bool:
        """Sets an identifier of the person. Returns False if it is taken, not text, or must not change."""
        has_id = "id" in person.identifiers
        if value is None and kind == "email" and has_id:
            self._drop(person, kind)
            return True
        if not isinstance(value, str) or not value.strip():
            return False
        owner = self._index.get(_key(kind, value))
        if owner is not None:
            return owner is person
        if kind in person.identifiers and not (kind == "email" and has_id):
            return False
        self._drop(person, kind)
        self._hold(person, kind, value)
        return True

    def _hold(self, person: Person, kind: str, value: str) -> None:
        person.identifiers[kind] = value
        self._index[_key(kind, value)] = person

    def _drop(self, person: Person, kind: str) -> None:
        value = person.identifiers.pop(kind, None)
        if value is not None:
            del self._index[_key(kind, value)]


def _key(kind: str, value: str) -> Identifier:
    return kind, value.lower() if kind == "email" else value
