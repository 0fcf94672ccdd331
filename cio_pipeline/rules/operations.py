"""From the events to send to exactly what goes out: Customer.io's operations (R7, R12 to R14) and what was refused.

An operation is the JSON text of one item of `/api/v2/batch`; of an event too large for that, the body of the v1 event call.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import orjson
import pandas as pd

from cio_pipeline.json_text import UnusableJson
from cio_pipeline.rules.attributes import attributes_of, name_rule
from cio_pipeline.rules.columns import microseconds, text_frame, texts, to_list, utf8
from cio_pipeline.rules.customers import SECOND, Customer, customers_frame
from cio_pipeline.rules.items import EventItems, Refused, event_type
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.reading import are_unusual, read_event
from cio_pipeline.rules.values import ulids

EMAIL_IN_ANOTHER_CASE = re.compile(r'"(?!email")(?i:email)":')
ANY_CASE = re.compile("email", re.IGNORECASE)

EVENT_COLUMNS = ["uuid", "ulid", "key", "distinct_id", "name", "type", "timestamp", "call", "operation", "personless"]
REJECT_COLUMNS = ["uuid", "distinct_id", "event", "timestamp", "what", "name", "reason"]


class Tables(NamedTuple):
    """What will be sent, and what will not.

    customers: key, part (0, or more where a customer passes 32,000 bytes), attributes (their number), timestamp (of the
    newest), operation, state (what the ledger keeps of these attributes: `customer_state.pack`), identifier and email (the
    customer's; the email may be absent), consent (whether one of these attributes is about consent, R19). events: uuid, ulid,
    key, distinct_id (as in PostHog, also where the event is stitched), name, type, timestamp, call (`batch` or `event`),
    operation, personless (R5); by time. rejects: uuid, distinct_id, event, timestamp, what (`event`, `attribute` or `data`),
    name (of the attribute or property), reason.
    """

    customers: pd.DataFrame
    events: pd.DataFrame
    rejects: pd.DataFrame


class _Row(NamedTuple):
    """What `build` takes of one event: JSON in UTF-8, times in microseconds."""

    properties: bytes | None
    person_properties: bytes | None
    is_unusual: bool
    name: str
    key: str
    identifier: str
    time: int
    ulid: bytes
    email: Any
    email_set: Any


def build(sent: pd.DataFrame, options: Options) -> Tables:
    """The tables of the events whose outcome is `sent`: whole customers, in the order `facts.ORDER`."""
    names, items = name_rule(options), EventItems(options)
    customers: dict[str, Customer] = {}
    kept: list[int] = []
    calls: list[str] = []
    operations: list[bytes] = []
    rejects: list[tuple[int, str, str, str]] = []
    event_ids = _ulids(sent)
    for number, row in enumerate(_rows(sent, event_ids)):
        try:
            read = read_event(row.properties, row.person_properties, row.is_unusual, names)
            unset = read.properties.get("$unset")
            data, overrides = items.data(read.properties)
            call, operation = items.item(row.key, row.name, row.ulid, row.time // SECOND, data)
        except (Refused, UnusableJson) as refusal:
            rejects.append((number, "event", row.name, str(refusal)))
            continue
        kept.append(number)
        calls.append(call)
        operations.append(operation)
        customer = customers.get(row.key) or customers.setdefault(row.key, Customer())
        left_out = read.attributes
        if read.given or unset:
            attributes, more_left_out = attributes_of(read.given, unset, names, options)
            customer.set(attributes, row.time)
            left_out = left_out + more_left_out
        customer.set_identifier(row.identifier, row.time)
        if (email := _email(row)) is not None:
            customer.set_email(*email)
        rejects += [(number, "attribute", name, reason) for name, reason in left_out]
        rejects += [(number, "data", name, reason) for name, reason in read.data]
        rejects += [(number, "data", name, "would redirect deliveries (R13)") for name in overrides]
    people, beyond = customers_frame(customers)
    if beyond:
        last = {key: number for number, key in enumerate(texts(sent["key"]))}
        rejects += [(last[key], "attribute", name, reason) for key, left_out in beyond.items() for name, reason in left_out]
    events = _events(sent, event_ids, kept, calls, operations)
    return Tables(people, events, _rejects(sent, rejects))


def emails_in_another_case(customers: pd.DataFrame) -> int:
    """How many attributes of these customers (as in `Tables`) are named email in another case: they are no email (R1)."""
    operations = filter(EMAIL_IN_ANOTHER_CASE.search, texts(customers["operation"]))
    names = (name for operation in operations for name in orjson.loads(operation)["attributes"])
    return sum(name != "email" and ANY_CASE.fullmatch(name) is not None for name in names)


def _ulids(sent: pd.DataFrame) -> list[bytes]:
    return ulids(microseconds(sent["timestamp"]), *(texts(sent[column]) for column in ("event", "distinct_id", "uuid")))


def _rows(sent: pd.DataFrame, event_ids: list[bytes]) -> Iterator[_Row]:
    contents, persons = utf8(sent["properties"]), utf8(sent["person_properties"])
    columns = (
        to_list(contents),
        to_list(persons),
        (are_unusual(contents) | are_unusual(persons)).tolist(),
        *(texts(sent[column]) for column in ("event", "key", "identifier")),
        microseconds(sent["timestamp"]).tolist(),
        event_ids,
        texts(sent["email"]),
        sent["email_set"].tolist(),
    )
    return map(_Row._make, zip(*columns, strict=True))


def _email(row: _Row) -> tuple[str, int] | None:
    """R7: the email that a sent event brings its customer, if any, and its time: when it was set, but no later than the event.

    An event that R16 sends may be older than the email it brings, which its person had at the merge.
    """
    if row.key.startswith("email:"):
        return row.key.removeprefix("email:"), row.time
    return (row.email, min(int(row.email_set), row.time)) if isinstance(row.email, str) else None


def _events(
    sent: pd.DataFrame, event_ids: list[bytes], kept: list[int], calls: list[str], operations: list[bytes]
) -> pd.DataFrame:
    """The rows of the events table: those of `sent` that are kept, with their calls and operations."""
    rows = sent[["uuid", "key", "distinct_id", "timestamp"]].take(kept).reset_index(drop=True)
    names = texts(sent["event"].take(kept))
    trimmed, types = ({name: make(name) for name in set(names)} for make in (str.strip, event_type))
    made: dict[str, list[Any]] = {
        "ulid": [event_ids[number] for number in kept],
        "name": [trimmed[name] for name in names],
        "type": [types[name] for name in names],
        "call": calls,
        "operation": operations,
    }
    personless = sent["personless"].take(kept).to_numpy(bool)
    return rows.assign(**text_frame(made), personless=personless)[EVENT_COLUMNS]


def _rejects(sent: pd.DataFrame, rejects: list[tuple[int, str, str, str]]) -> pd.DataFrame:
    """The rows of the rejects table: (number of the event's row, what, name, reason) with what says which event it is."""
    rows = sent[["uuid", "distinct_id", "event", "timestamp"]].take([number for number, *_ in rejects]).reset_index(drop=True)
    made = {column: [one[at] for one in rejects] for at, column in enumerate(("what", "name", "reason"), start=1)}
    return rows.assign(**text_frame(made))[REJECT_COLUMNS]
