"""From the events to send to exactly what goes out: Customer.io's operations (R7, R12 to R14) and what was refused.

An operation is the JSON text of one item of `/api/v2/batch`; of an event too large for that, the body of the v1 event call.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson
import pandas as pd

from cio_pipeline.customer_state import name_hash, pack, state_time, value_hash
from cio_pipeline.json_text import TOO_DEEP, UnusableJson, is_too_deep, read_object, repair_surrogates, write
from cio_pipeline.rules.attributes import EXCLUDED, LeftOut, NameRule, attributes_of, name_rule, unset_names, within_most
from cio_pipeline.rules.consent import is_consent
from cio_pipeline.rules.facts import is_given
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.values import ulids

ITEM_BYTES = 32_000
DATA_BYTES = 100_000
"""Customer.io's limits: an item of a v2 batch, and an event's data by the v1 call (Track API, OpenAPI)."""

PLAIN_EMAIL = re.compile(r'[^\s"@]+@[^\s"@]+')

TYPES = {"$pageview": "page", "$screen": "screen"}
DELIVERY_OVERRIDES = frozenset({"recipient", "from_address", "reply_to"})
NOT_DATA = frozenset({"$set", "$set_once", "$unset"})

MENDED = "half a surrogate pair became U+FFFD"
EMAIL_IN_ANOTHER_CASE = re.compile(r'(?<!\\)"(?!email")(?i:email)":')

CUSTOMER_COLUMNS = ("key", "part", "attributes", "timestamp", "times", "operation", "state", "identifier", "email", "consent")
EVENT_COLUMNS = ("uuid", "ulid", "key", "distinct_id", "name", "type", "timestamp", "call", "operation", "personless")
REJECT_COLUMNS = ("uuid", "distinct_id", "event", "timestamp", "what", "name", "reason")


class Tables(NamedTuple):
    """What will be sent, and what will not.

    customers: key, part (0, or more where a customer passes 32,000 bytes), attributes (their number), timestamp (of the
    newest), times (JSON: attribute name to Unix seconds), operation, state (what the ledger keeps of these attributes, as
    `customer_state.pack` packs it), identifier, email (text, where they are among the attributes), consent (whether any says
    what the person wants to hear, R19). events: uuid, ulid, key, distinct_id (as in PostHog, also
    where the event is stitched), name, type, timestamp, call (`batch` or `event`), operation, personless (R5); by time.
    rejects: uuid, distinct_id, event, timestamp, what (`event`, `attribute` or `data`), name (of the attribute or property),
    reason.
    """

    customers: pd.DataFrame
    events: pd.DataFrame
    rejects: pd.DataFrame


class Refused(Exception):
    """R14: this event cannot be sent; the message is the reason."""


@dataclass
class Customer:
    """A customer as the day's events fill it: name to value, and name to the time it was set (microseconds)."""

    attributes: dict[str, Any] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    def take(self, attributes: dict[str, Any], time: int) -> None:
        """R7: the last value by time wins; events come in time order."""
        self.attributes.update(attributes)
        self.times.update(dict.fromkeys(attributes, time))

    def take_email(self, email: str | None, set_at: int) -> None:
        """R7: an email as of when it was set; an event that only carries it along must not pass for a newer one (R17)."""
        if email is not None and set_at >= self.times.get("email", set_at):
            self.take({"email": email}, set_at)


@dataclass
class Read:
    """What an event's JSON says: `properties` and `given` attributes (R7), and what was mended or unusable of them."""

    properties: dict[str, Any]
    given: dict[str, Any]
    attributes: LeftOut
    data: LeftOut


def build(sent: pd.DataFrame, options: Options) -> Tables:
    """The tables of the events whose outcome is `sent`: whole customers, in the order `facts.ORDER`."""
    customers: dict[str, Customer] = {}
    events: list[tuple[Any, ...]] = []
    rejects: list[tuple[Any, ...]] = []
    names = name_rule(options)
    times = sent["timestamp"].astype("datetime64[us, UTC]").astype("int64").tolist()
    ids = ulids(times, *(sent[column].tolist() for column in ("event", "distinct_id", "uuid")))
    rows: Iterable[Any] = sent.itertuples(index=False)
    for row, time, event_id in zip(rows, times, ids, strict=True):
        who = (row.uuid, row.distinct_id, row.event, row.timestamp)
        try:
            read = _read(row.properties, row.person_properties, names)
            event, overrides = _event(row, time, event_id, read.properties, options)
        except (Refused, UnusableJson) as refusal:
            rejects.append((*who, "event", row.event, str(refusal)))
            continue
        events.append(event)
        attributes, left_out = attributes_of(read.given, read.properties.get("$unset"), names, options)
        customer = customers.setdefault(row.key, Customer())
        customer.take(attributes, time)
        customer.take({"identifier": row.identifier}, time)
        customer.take_email(*_email(row, time))
        rejects += [(*who, "attribute", name, reason) for name, reason in read.attributes + left_out]
        rejects += [(*who, "data", name, reason) for name, reason in read.data]
        rejects += [(*who, "data", name, "would redirect deliveries (R13)") for name in overrides]
    people, beyond = _customers(customers, sent)
    return Tables(
        pd.DataFrame(people, columns=list(CUSTOMER_COLUMNS)),
        pd.DataFrame(events, columns=list(EVENT_COLUMNS)),
        pd.DataFrame(rejects + beyond, columns=list(REJECT_COLUMNS)),
    )


def emails_in_another_case(customers: pd.DataFrame) -> int:
    """How many attributes of these customers (as in `Tables`) are named email in another case: they are no email (R1)."""
    return sum(len(EMAIL_IN_ANOTHER_CASE.findall(times)) for times in customers["times"].tolist())


def identifiers(key: str) -> dict[str, str]:
    """Customer.io's identifiers of a key: `id:u1` is {"id": "u1"}."""
    kind, _, value = key.partition(":")
    return {kind: value}


def _read(text: Any, person_text: Any, names: NameRule) -> Read:
    """What an event's JSON says. Raises `UnusableJson` where its properties cannot be sent."""
    found = _sendable(text)
    properties, mended = repair_surrogates(text, found)
    given, unusable = found.get("$set"), []
    if is_given(person_text):
        try:
            given, text = _sendable(person_text), person_text
        except UnusableJson as reason:
            given, unusable = {}, [("person_properties", f"{reason} (R7)")]
    given, changed = repair_surrogates(text, given if isinstance(given, dict) else {})
    if "$unset" in mended:
        changed += set(unset_names(properties["$unset"])).difference(unset_names(found["$unset"]))
    attributes = unusable + [(name, MENDED) for name in changed if names(name) != EXCLUDED]
    return Read(properties, given, attributes, [(name, MENDED) for name in mended if name not in NOT_DATA])


def _sendable(text: Any) -> dict[str, Any]:
    found = read_object(text)
    if is_too_deep(text, found):
        raise UnusableJson(TOO_DEEP)
    return found


def _email(row: Any, time: int) -> tuple[str | None, int]:
    """R7: the email that a sent event brings its customer, if any, and its time: when it was set, but no later than the event.

    An event that R16 sends may be older than the email it brings, which its person had at the merge.
    """
    kind, _, value = row.key.partition(":")
    email, set_at = (value, time) if kind == "email" else (row.email, row.email_set)
    return (email, min(int(set_at), time)) if isinstance(email, str) else (None, time)


def _event(
    row: Any, time: int, event_id: str, properties: dict[str, Any], options: Options
) -> tuple[tuple[Any, ...], list[str]]:
    """One row of the events table, and the names that R13 left out of its data."""
    overrides = [name for name in properties if name.lower() in DELIVERY_OVERRIDES]
    if options.allow_delivery_overrides:
        overrides = []
    leave_out = NOT_DATA.union(overrides)
    data = write({name: value for name, value in properties.items() if name not in leave_out})
    if len(data) > DATA_BYTES:
        raise Refused(f"data is over {DATA_BYTES} bytes (R14)")
    name, kind = row.event.strip(), TYPES.get(row.event, "event")
    call, operation = _operation(row.key, event_id, name, kind, time // 1_000_000, data)
    whose = (row.uuid, event_id, row.key, row.distinct_id)
    return (*whose, name, kind, row.timestamp, call, operation.decode(), bool(row.personless)), overrides


def _operation(key: str, event_id: str, name: str, kind: str, seconds: int, data: bytes) -> tuple[str, bytes]:
    event = {"id": event_id, "name": name, "timestamp": seconds}
    item = {"type": "person", "action": kind, "identifiers": identifiers(key), **event}
    operation = orjson.dumps({**item, "attributes": orjson.Fragment(data)})
    if len(operation) <= ITEM_BYTES:
        return "batch", operation
    if not _can_stand_in_a_path(key):
        raise Refused(f"item is over {ITEM_BYTES} bytes and the v1 call's path would not name its customer (R14)")
    return "event", orjson.dumps({**event, "type": kind, "data": orjson.Fragment(data)})


def _can_stand_in_a_path(key: str) -> bool:
    """The v1 call tells by the looks of what stands in its path whether that is an id, an email or, with `cio_`, Customer.io's
    own id (OpenAPI); and HTTP clients resolve dots (RFC 3986)."""
    kind, _, value = key.partition(":")
    if value in (".", "..") or value.startswith("cio_"):
        return False
    return PLAIN_EMAIL.fullmatch(value) is not None if kind == "email" else "@" not in value


def _customers(customers: dict[str, Customer], sent: pd.DataFrame) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    """The rows of the customers table, and the rejects beyond R10's 300 attributes."""
    rows: list[tuple[Any, ...]] = []
    rejects: list[tuple[Any, ...]] = []
    for key, customer in customers.items():
        attributes, beyond = within_most(customer.attributes)
        if beyond:
            last = sent[sent["key"] == key].iloc[-1]
            who = (last["uuid"], last["distinct_id"], last["event"], last["timestamp"])
            rejects += [(*who, "attribute", name, reason) for name, reason in beyond]
        rows += [_customer(key, number, part, customer.times) for number, part in enumerate(_parts(attributes))]
    return rows, rejects


def _customer(key: str, number: int, attributes: dict[str, Any], times: dict[str, int]) -> tuple[Any, ...]:
    seconds = {name: times[name] // 1_000_000 for name in attributes}
    newest = max(times[name] for name in attributes)
    operation = write(identify(key, attributes, newest // 1_000_000))
    timestamp = pd.Timestamp(newest, unit="us", tz="UTC")
    state = pack({name_hash(name): (value_hash(write(value)), state_time(seconds[name])) for name, value in attributes.items()})
    identifier, email = (attributes.get(name) for name in ("identifier", "email"))
    row = (key, number, len(attributes), timestamp, orjson.dumps(seconds).decode(), operation.decode(), state)
    return (*row, identifier, email if isinstance(email, str) else None, any(map(is_consent, attributes)))


def identify(key: str, attributes: dict[str, Any], seconds: int) -> dict[str, Any]:
    """R17: an upsert that carries the time of its newest attribute."""
    person = {"type": "person", "action": "identify", "identifiers": identifiers(key)}
    return {**person, "timestamp": seconds, "attributes": attributes}


def _parts(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    """One part, or as many as it takes for each upsert to stay within 32,000 bytes."""
    room = ITEM_BYTES - 500
    parts: list[dict[str, Any]] = [{}]
    size = 0
    for name, value in attributes.items():
        size += len(write(name)) + len(write(value)) + 2
        if size > room and parts[-1]:
            parts.append({})
            size = len(write(name)) + len(write(value)) + 2
        parts[-1][name] = value
    return parts
