"""The rules (docs/rules.md) read one event at a time, with plain dictionaries: what the tables of the days must hold.

It shares nothing with `cio_pipeline.connector` but the options, and is slow. The tests compare the product with it.
"""

from __future__ import annotations

import json
import re
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from cio_pipeline.connector.options import Options

RESERVED = {"id", "cio_id", "identifier", "anonymous_id", "_update", "_timestamp"}
RESERVED |= {"_created_in_customerio_at", "cio_relationships"}
REDIRECTING = {"recipient", "from_address", "reply_to"}
ILLEGAL_IN_ANY_CASE = ["anonymous", "guest", "distinctid", "distinct_id", "id", "not_authenticated", "email", "undefined"]
ILLEGAL_IN_ANY_CASE += ["true", "false"]
ILLEGAL = ["[object Object]", "NaN", "None", "none", "null", "0"]

EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
ATOM = r'[^<>()\[\]\\.,;:\s\ufeff@"]+'
LOCAL = rf'({ATOM}(\.{ATOM})*|"[^\n\r\u2028\u2029]+")'
EMAIL = re.compile(LOCAL + r"@(([a-z0-9-]+\.)+[a-z]{2,}|\[([0-9]{1,3}\.){3}[0-9]{1,3}\])")
ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(?:(:\d\d)(?:\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)
LEFT_OUT = object()


class Event(NamedTuple):
    """An event as PostHog stores it: `at` in microseconds since 1970, the properties as JSON text."""

    at: int
    uuid: str
    name: str
    distinct_id: str
    properties: str | None = "{}"
    person_properties: str | None = None

    @property
    def day(self) -> str:
        return str((EPOCH + timedelta(microseconds=self.at)).date())


class Sending(NamedTuple):
    """An event that goes out: in which partition, and as whose."""

    event: Event
    day: str
    distinct_id: str
    key: str
    email: str | None
    email_set: int


@dataclass
class Expected:
    """customers: (day, key) to name to (value, Unix seconds). events: day to what goes out, in no order.

    outcomes: uuid to (`sent`, `filtered` or `refused`, the partition in which).
    """

    customers: dict[tuple[str, str], dict[str, tuple[Any, int]]] = field(default_factory=dict)
    events: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    outcomes: dict[str, tuple[str, str]] = field(default_factory=dict)


def expected(events: list[Event], start: str, options: Options) -> Expected:
    """What the partitions from `start` on must hold; the events before it are the history."""
    result = Expected()
    for sending in sorted(decide(events, start, options, result.outcomes), key=lambda sending: sending.event):
        properties = sendable(sending.event.properties)
        given = given_attributes(sending.event, options, sendable)
        made = None if properties is None else as_event(sending, properties, options)
        result.outcomes[sending.event.uuid] = ("refused" if made is None else "sent", sending.day)
        if made is None or properties is None:
            continue
        result.events[sending.day].append(made)
        customer = result.customers.setdefault((sending.day, sending.key), {})
        for name, value in attributes(sending, given, properties.get("$unset"), options).items():
            at = sending.email_set if name == "email" else sending.event.at
            if name not in customer or customer[name][1] <= at:
                customer[name] = (value, at)
    for key, customer in result.customers.items():
        first = [name for name in ("email", "identifier", "created_at") if name in customer]  # R10
        names = (first + [name for name in customer if name not in first])[:300]
        result.customers[key] = {name: (customer[name][0], customer[name][1] // 1_000_000) for name in names}
    return result


def decide(events: list[Event], start: str, options: Options, outcomes: dict[str, tuple[str, str]]) -> list[Sending]:
    """Tells what becomes of each event, and gives those that go out if their data can."""
    known = Known(options)
    held_back: dict[str, list[Event]] = defaultdict(list)
    sendings: list[Sending] = []
    for event in sorted(events):
        known.learn(event)
        if event.day < start:  # R18
            continue
        sendings += stitched(event, known, held_back, options)
        listed = not options.event_allowlist or event.name in options.event_allowlist  # R3
        outcome = "sent"
        if event.name == "$create_alias" or not listed:  # R4
            outcome = "filtered"
        elif not is_usable(event.distinct_id) or not 1 <= size(event.name.strip()) <= 100:  # R14
            outcome = "refused"
        elif not known.passes(event.distinct_id):
            outcome = "filtered"
            held_back[event.distinct_id].append(event)
        else:
            sendings.append(known.sending(event, event.day, event.distinct_id))
        outcomes[event.uuid] = (outcome, event.day)
    return sendings


class Known:
    """R1: what is known so far."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.identified: set[str] = set()
        self.emails: dict[str, tuple[str, int]] = {}

    def learn(self, event: Event) -> None:
        given = given_attributes(event, self.options, readable)
        if is_usable(event.distinct_id) and is_email(given.get("email")):
            self.emails[event.distinct_id] = (given["email"], event.at)
        if is_usable(event.distinct_id) and event.name == "$identify":
            self.identified.add(event.distinct_id)

    def email_of(self, who: str) -> str | None:
        return self.emails[who][0] if who in self.emails else who if is_email(who) else None

    def passes(self, who: str) -> bool:
        """R5."""
        if self.options.anonymous_users == "identified":
            return who in self.identified
        return self.options.anonymous_users == "all" or self.email_of(who) is not None

    def sending(self, event: Event, day: str, who: str) -> Sending:
        """R6, and when the email was set that R7 adds."""
        own = who if is_email(who) else None
        email = self.email_of(who) if self.options.identify_by_email else own
        key = f"id:{who}" if email is None else f"email:{email.lower()}"
        email_set = event.at if key.startswith("email:") else self.emails.get(who, ("", event.at))[1]
        return Sending(event, day, who, key, self.email_of(who), min(email_set, event.at))


def stitched(event: Event, known: Known, held_back: dict[str, list[Event]], options: Options) -> list[Sending]:
    """R16: the held-back events that this one takes. What it could have taken is nobody else's."""
    who = event.distinct_id
    anonymous_id: Any = (readable(event.properties) or {}).get("$anon_distinct_id")
    if event.name != "$identify" or not is_usable(who) or not is_legal(who) or not is_legal(anonymous_id):
        return []
    if anonymous_id in known.identified:
        return []
    since = event.at - options.stitch_anonymous_days * 86_400_000_000
    waiting = [earlier for earlier in held_back.pop(anonymous_id, []) if earlier.at >= since]
    may = options.stitch_anonymous_days > 0 and known.passes(who)
    return [known.sending(earlier, event.day, who) for earlier in waiting if may]


def as_event(sending: Sending, properties: dict[str, Any], options: Options) -> dict[str, Any] | None:
    """R12 to R14: what goes out of an event; None where it is refused."""
    event, (kind, identifier) = sending.event, sending.key.split(":", 1)
    data = {name: value for name, value in properties.items() if name not in ("$set", "$set_once", "$unset")}
    if not options.allow_delivery_overrides:
        data = {name: value for name, value in data.items() if name.lower() not in REDIRECTING}
    action = {"$pageview": "page", "$screen": "screen"}.get(event.name, "event")
    made = {"id": ulid(event.uuid), "name": event.name.strip(), "timestamp": event.at // 1_000_000}
    item = {**made, "type": "person", "action": action, "identifiers": {kind: identifier}, "attributes": data}
    call = "batch" if size(item) <= 32_000 else "event"
    as_email = kind == "email" and not re.search(r'[\s"]', identifier)
    not_in_a_path = identifier in (".", "..") or identifier.startswith("cio_") or ("@" in identifier) != as_email
    if size(data) > 100_000 or (call == "event" and not_in_a_path):
        return None
    return {**made, "key": sending.key, "type": action, "call": call, "data": data}


def attributes(sending: Sending, given: dict[str, Any], unset: Any, options: Options) -> dict[str, Any]:
    """R7 to R11: what an event sets; None clears."""
    values = {name: attribute(name, value) for name, value in given.items()}
    values.update({name: None for name in unset if isinstance(name, str)} if isinstance(unset, (list, dict)) else {})
    excluded = [name for name in values if any(fnmatchcase(name, pattern) for pattern in options.exclude_attributes)]
    made = {name: value for name, value in values.items() if name not in (*RESERVED, *excluded) and size(name) <= 150}
    made["email"] = sending.key.split(":", 1)[1] if sending.key.startswith("email:") else sending.email
    if made["email"] is None or size(made["email"]) > 1000:
        made["email"] = LEFT_OUT
    made["identifier"] = sending.distinct_id
    return {name: value for name, value in made.items() if value is not LEFT_OUT}


def attribute(name: str, value: Any) -> Any:
    """R9 and R10: the value that is sent, or LEFT_OUT."""
    if name == "created_at":
        value = unix_seconds(value)
    if value is LEFT_OUT:
        return LEFT_OUT
    if isinstance(value, str):
        return value.encode()[:1000].decode(errors="ignore")
    return LEFT_OUT if size(value) > 1000 else value


def given_attributes(event: Event, options: Options, read: Callable[[str | None], dict[str, Any] | None]) -> dict[str, Any]:
    """R7: a `$set`, or properties of the person, that are no object count as absent."""
    if options.attributes_from == "person":
        return read(event.person_properties) or {}
    properties = read(event.properties)
    given = properties.get("$set") if properties else None
    return given if isinstance(given, dict) else {}


def unix_seconds(value: Any) -> Any:
    """R9."""
    if isinstance(value, str) and re.fullmatch("[0-9]{9,13}", value):
        value = int(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return int(value // 1000 if value > 1e11 else value)
    found = ISO.fullmatch(value) if isinstance(value, str) else None
    try:
        date, minutes, seconds, zone = found.groups(default="") if found else ("", "", "", "")
        moment = datetime.fromisoformat(f"{date}T{minutes or '00:00'}{seconds}{zone.replace('Z', '') or '+00:00'}")
        return int(moment.timestamp())
    except ValueError:
        return LEFT_OUT


def is_email(value: Any) -> bool:
    """R2."""
    return isinstance(value, str) and not lone_surrogates(value) and EMAIL.fullmatch(value.lower()) is not None


def is_usable(distinct_id: str) -> bool:
    """R14."""
    return distinct_id.strip() != "" and size(distinct_id) <= 150


def is_legal(distinct_id: Any) -> bool:
    """R16: whether PostHog would merge it."""
    if not isinstance(distinct_id, str) or lone_surrogates(distinct_id) or distinct_id.strip() == "":
        return False
    in_any_case = [quote + name + quote for quote in ("", "'", '"') for name in ILLEGAL_IN_ANY_CASE]
    as_it_is = [quote + name + quote for quote in ("", "'", '"') for name in ILLEGAL]
    return distinct_id.lower() not in in_any_case and distinct_id not in as_it_is


def ulid(event_uuid: str) -> str:
    """R12."""
    bits = uuid.UUID(event_uuid).int
    return "".join("0123456789ABCDEFGHJKMNPQRSTVWXYZ"[bits >> shift & 31] for shift in range(125, -1, -5))


def readable(text: str | None) -> dict[str, Any] | None:
    """The object in the text; no text is an empty one; None where there is no object in it."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def sendable(text: str | None) -> dict[str, Any] | None:
    """The object in the text; None where there is none, or it holds what JSON or UTF-8 cannot carry."""
    value = readable(text)
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        return None
    return value


def lone_surrogates(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def size(value: Any) -> int:
    """Bytes of UTF-8: of text as it is, of anything else as compact JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return len(text.encode())
