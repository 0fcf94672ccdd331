"""A Customer.io workspace in memory, and the Track API's rules for what may enter it.

The limits are Customer.io's documented ones, in bytes. Where its documentation is silent the stand-in is strict, so
that a mistake shows here rather than in a real workspace: an event ``id`` must be a ULID and a ``timestamp`` whole Unix
seconds (Customer.io itself puts "now" in the place of a timestamp it cannot read).
"""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

BATCH_BYTES = 500_000
ITEM_BYTES = 32_000
ID_BYTES = 150
ATTRIBUTE_NAME_BYTES = 150
ATTRIBUTE_VALUE_BYTES = 1_000
ATTRIBUTES_PER_CALL = 300
EVENT_NAME_BYTES = 100
EVENT_DATA_BYTES = 100_000
LATEST_TIMESTAMP = 10**11

EVENT_TYPES = ("event", "page", "screen")
IDENTIFIERS = ("id", "email", "cio_id")
FAILURE = "Attribute Update Failure"
# These steer the identify call and are no attributes of the person.
DIRECTIVES = frozenset({"_update", "_timestamp", "_created_in_customerio_at", "cio_relationships"})
ULID = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}", re.IGNORECASE | re.ASCII)

Answer = tuple[int, dict[str, Any]]
Identifier = tuple[str, str]


class InvalidRequestError(Exception):
    """What the Track API refuses, in the three words of its v2 errors: reason, field and message."""

    def __init__(self, reason: str, field: str, message: str) -> None:
        super().__init__(message)
        self.error = {"reason": reason, "field": field, "message": message}


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
    """A profile: who it is, what is known of it, and what it did, in the order received."""

    identifiers: dict[str, str]
    attributes: dict[str, Attribute] = field(default_factory=dict)
    activities: list[Activity] = field(default_factory=list)

    @property
    def events(self) -> list[Activity]:
        """The activities that were sent as events, pages and screens."""
        return [activity for activity in self.activities if activity.type in EVENT_TYPES]

    @property
    def values(self) -> dict[str, Any]:
        """The attributes that are set, by name."""
        return {name: stored.value for name, stored in self.attributes.items() if stored.value is not None}

    def to_dict(self) -> dict[str, Any]:
        """The person as ``GET /sandbox/people`` gives it."""
        keys = ("id", "name", "type", "timestamp", "data")
        events = [{key: getattr(event, key) for key in keys} for event in self.events]
        return {"identifiers": self.identifiers, "attributes": self.values, "events": events}


@dataclass(frozen=True)
class Identify:
    """A checked identify call."""

    identifier: Identifier
    attributes: dict[str, Any]
    timestamp: int | None
    update_only: bool


@dataclass(frozen=True)
class Track:
    """A checked event, page or screen call."""

    identifier: Identifier
    type: str
    name: str
    data: dict[str, Any]
    timestamp: int | None
    id: str | None


def compact_size(value: Any) -> int:
    """The bytes of a value: of text its UTF-8, of anything else its compact JSON."""
    if isinstance(value, str):
        return len(value.encode())
    try:
        # orjson writes 254 levels; the four around the value are those of the people listing.
        return len(orjson.dumps([[[[value]]]])) - 8
    except orjson.JSONEncodeError as error:
        raise InvalidRequestError("invalid", "", "value is nested too deeply") from error


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; anything else, invalid UTF-8 and lone surrogates included, is refused."""
    try:
        parsed = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequestError("invalid", "", f"body is not valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise InvalidRequestError("invalid", "", "body must be a JSON object")
    return parsed


def parse_batch(body: bytes) -> list[Any]:
    """The items of a ``/api/v2/batch`` body, which must be smaller than 500 kB and hold at least one."""
    if len(body) >= BATCH_BYTES:
        raise InvalidRequestError("invalid", "batch", f"batch request must be smaller than {BATCH_BYTES} bytes")
    items = parse_object(body).get("batch")
    if not isinstance(items, list) or not items:
        raise InvalidRequestError("required", "batch", "batch must be an array of at least one item")
    return items


def parse_item(item: Any) -> Identify | Track:
    """One v2 operation on a person, checked: what it says and that it is at most 32 kB."""
    if not isinstance(item, dict):
        raise InvalidRequestError("invalid", "", "item must be an object")
    if compact_size(item) > ITEM_BYTES:
        raise InvalidRequestError("invalid", "", f"item cannot be longer than {ITEM_BYTES} bytes")
    if item.get("type") != "person":
        raise InvalidRequestError("invalid" if "type" in item else "required", "type", "type must be 'person'")
    action = item.get("action")
    if action != "identify" and action not in EVENT_TYPES:
        message = "action must be identify, event, page or screen"
        raise InvalidRequestError("invalid" if "action" in item else "required", "action", message)
    identifier = parse_identifiers(item.get("identifiers"))
    if action == "identify":
        return parse_identify(identifier, item.get("attributes", {}), item, "timestamp")
    return parse_track(identifier, item, type_=action, data_key="attributes")


def parse_identifiers(identifiers: Any) -> Identifier:
    """The one identifier of a v2 item: ``id``, ``email`` or ``cio_id``."""
    if not isinstance(identifiers, dict) or len(identifiers) != 1:
        raise InvalidRequestError("required", "identifiers", "identifiers must be an object of exactly one identifier")
    kind, value = next(iter(identifiers.items()))
    if kind not in IDENTIFIERS:
        raise InvalidRequestError("invalid", f"identifiers.{kind}", f"identifier must be one of {', '.join(IDENTIFIERS)}")
    check_identifier(kind, value, f"identifiers.{kind}")
    return kind, value


def parse_path_identifier(text: str) -> Identifier:
    """The identifier in a v1 path, its kind guessed from its shape as Customer.io does."""
    if "@" in text:
        identifier = ("email", text)
    elif text.startswith("cio_"):
        identifier = ("cio_id", text.removeprefix("cio_"))
    else:
        identifier = ("id", text)
    check_identifier(*identifier, "identifier")
    return identifier


def check_identifier(kind: str, value: Any, where: str) -> None:
    """Refuse an identifier that is no text, is blank, or is an id of more than 150 bytes."""
    if not isinstance(value, str):
        raise InvalidRequestError("invalid", where, f"{kind} attribute must be a string value")
    if not value.strip():
        raise InvalidRequestError("required", where, f"{kind} attribute cannot be an empty string")
    if kind == "id" and compact_size(value) > ID_BYTES:
        raise InvalidRequestError("invalid", where, f"id attribute cannot be longer than {ID_BYTES} bytes")


def parse_identify(identifier: Identifier, attributes: Any, holder: dict[str, Any], time_key: str) -> Identify:
    """An identify call, its attributes within the limits of one call; ``holder`` has the time under ``time_key``."""
    if not isinstance(attributes, dict):
        raise InvalidRequestError("invalid", "attributes", "attributes must be an object")
    described = {name: value for name, value in attributes.items() if name not in DIRECTIVES}
    if len(described) > ATTRIBUTES_PER_CALL:
        message = f"cannot identify more than {ATTRIBUTES_PER_CALL} attributes in one request"
        raise InvalidRequestError("invalid", "attributes", message)
    for name, value in described.items():
        check_attribute(name, value)
    return Identify(identifier, described, parse_timestamp(holder, time_key), attributes.get("_update") is True)


def check_attribute(name: str, value: Any) -> None:
    """Refuse an attribute whose name or value is too long, or an ``id`` that could not be one."""
    if compact_size(name) > ATTRIBUTE_NAME_BYTES:
        message = f"attribute name cannot be longer than {ATTRIBUTE_NAME_BYTES} bytes"
        raise InvalidRequestError("invalid", "attributes", message)
    if compact_size(value) > ATTRIBUTE_VALUE_BYTES:
        message = f"value for attribute '{name}' cannot be longer than {ATTRIBUTE_VALUE_BYTES} bytes"
        raise InvalidRequestError("invalid", f"attributes.{name}", message)
    if name == "id":
        check_identifier("id", value, "attributes.id")


def parse_track(identifier: Identifier, call: dict[str, Any], *, type_: Any, data_key: str) -> Track:
    """An event, page or screen call; v2 keeps the event's data under ``attributes``, v1 under ``data``."""
    name, data, ulid = call.get("name"), call.get(data_key, {}), call.get("id")
    if type_ not in EVENT_TYPES:
        raise InvalidRequestError("invalid", "type", "type must be event, page or screen")
    if not isinstance(name, str) or not name.strip():
        raise InvalidRequestError("required", "name", "event name must not be blank")
    if compact_size(name.strip()) > EVENT_NAME_BYTES:
        raise InvalidRequestError("invalid", "name", f"event name cannot be longer than {EVENT_NAME_BYTES} bytes")
    if not isinstance(data, dict):
        raise InvalidRequestError("invalid", data_key, "event data must be a hash")
    if compact_size(data) > EVENT_DATA_BYTES:
        raise InvalidRequestError("invalid", data_key, f"event data cannot be longer than {EVENT_DATA_BYTES} bytes")
    if "id" in call and not (isinstance(ulid, str) and ULID.fullmatch(ulid)):
        raise InvalidRequestError("invalid", "id", "event id must be a valid ULID")
    return Track(identifier, type_, name.strip(), data, parse_timestamp(call, "timestamp"), ulid and ulid.upper())


def parse_timestamp(call: dict[str, Any], key: str) -> int | None:
    """Whole Unix seconds, or None where there are none: "now". Milliseconds and times before 1970 are refused."""
    timestamp = call.get(key)
    if key in call and (type(timestamp) is not int or not 0 <= timestamp < LATEST_TIMESTAMP):
        raise InvalidRequestError("invalid", key, f"{key} must be an integer of Unix seconds")
    return timestamp


class Workspace:
    """The people of a workspace and the calls that change them; safe to use from several threads.

    An email belongs to one person, as in Customer.io: whoever is identified by it or was given it first as an
    attribute. An identify that would give it to a second person answers 200, leaves that person's email as it was and
    records an "Attribute Update Failure"; every other attribute is set. The stand-in never merges: where Customer.io
    would let a new id take over the profile that holds the email, two people stay visible here.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._people: dict[str, Person] = {}
        self._index: dict[Identifier, Person] = {}
        self._ulids: set[str] = set()
        self._events = 0

    def batch(self, body: bytes) -> Answer:
        """``POST /api/v2/batch``: 200, 207 that names the refused items by index, or 400 for what is no batch."""
        try:
            items = parse_batch(body)
        except InvalidRequestError as refused:
            return 400, {"errors": [refused.error]}
        refusals = ((index, self._take(item)) for index, item in enumerate(items))
        errors = [{"batch_index": index, **error} for index, error in refusals if error]
        return (207, {"errors": errors}) if errors else (200, {})

    def entity(self, body: bytes) -> Answer:
        """``POST /api/v2/entity``: one operation, 200 or 400."""
        try:
            error = self._take(parse_object(body))
        except InvalidRequestError as refused:
            error = refused.error
        return (400, {"errors": [error]}) if error else (200, {})

    def customer(self, identifier: str, body: bytes) -> Answer:
        """``PUT /api/v1/customers/{identifier}``: an identify whose body is the attributes."""
        return self._v1(lambda: self._identify_v1(identifier, parse_object(body)))

    def customer_event(self, identifier: str, body: bytes) -> Answer:
        """``POST /api/v1/customers/{identifier}/events``: one event, page or screen."""
        return self._v1(lambda: self._track_v1(identifier, parse_object(body)))

    def people(self) -> list[Person]:
        """A copy of everyone, the one who changed last first."""
        return self.search("", 0, None)[0]

    def search(self, query: str, start: int, stop: int | None) -> tuple[list[Person], int]:
        """A page of the people whose id, email or name contains the query, and how many there are in all."""
        wanted = query.strip().lower()
        with self._lock:
            newest = reversed(self._people.values())
            found = [person for person in newest if not wanted or wanted in _searchable(person)]
            return [_copy(person) for person in found[start:stop]], len(found)

    def person(self, text: str) -> Person | None:
        """A copy of the person with this id, email or, written ``cio_...``, cio_id."""
        keys = (("id", text), ("email", text.lower()), ("cio_id", text.removeprefix("cio_")))
        with self._lock:
            found = next((self._index[key] for key in keys if key in self._index), None)
            return _copy(found) if found else None

    def totals(self) -> dict[str, int]:
        """How many people and events the workspace holds."""
        with self._lock:
            return {"people": len(self._people), "events": self._events}

    def _take(self, item: Any) -> dict[str, str] | None:
        try:
            operation = parse_item(item)
        except InvalidRequestError as refused:
            return refused.error
        self._apply(operation)
        return None

    def _v1(self, call: Callable[[], None]) -> Answer:
        try:
            call()
        except InvalidRequestError as refused:
            return 400, {"meta": {"error": str(refused)}}
        return 200, {}

    def _identify_v1(self, identifier: str, body: dict[str, Any]) -> None:
        self._apply(parse_identify(parse_path_identifier(identifier), body, body, "_timestamp"))

    def _track_v1(self, identifier: str, body: dict[str, Any]) -> None:
        type_ = body.get("type", "event")
        self._apply(parse_track(parse_path_identifier(identifier), body, type_=type_, data_key="data"))

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
        """The person of an identifier, moved to the end as the one who changed last; an unknown cio_id is nobody."""
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
        """Make an identifier the person's own, or say that it cannot be: taken, no text, or not to be changed."""
        has_another_name = "id" in person.identifiers
        if value is None and kind == "email" and has_another_name:
            self._drop(person, kind)
            return True
        if not isinstance(value, str) or not value.strip():
            return False
        owner = self._index.get(_key(kind, value))
        if owner is not None:
            return owner is person
        if kind in person.identifiers and not (kind == "email" and has_another_name):
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


def _copy(person: Person) -> Person:
    return replace(
        person,
        identifiers=dict(person.identifiers),
        attributes={name: replace(stored) for name, stored in person.attributes.items()},
        activities=list(person.activities),
    )


def _searchable(person: Person) -> str:
    name = person.attributes.get("name")
    return "\n".join([*person.identifiers.values(), str(name.value if name else "")]).lower()
