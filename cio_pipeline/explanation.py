"""Explains what became of a person's events and attributes, and why."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pandas as pd

from cio_pipeline.attribute_state import name_hash, unpack, upsert_id
from cio_pipeline.json_text import read_object
from cio_pipeline.masking import mask, mask_id, mask_key
from cio_pipeline.person_records import PersonRecords
from cio_pipeline.rules.classify import FILTERED, REFUSED

ACKNOWLEDGED = "yes"
NOT_YET = "not yet"
NEWER = "a newer value is (R17)"
SUPPRESSED = "CIO_SUPPRESSED_FILE names this person (R21)"

OUTCOMES = ("sent", "filtered", "suppressed", "refused", "not derived yet")
"""What may have become of an event: `filtered` by R3 to R5, `suppressed` by R21, `refused` by R14."""


class Event(NamedTuple):
    """What became of an event."""

    time: str
    event: str
    distinct_id: str
    uuid: str
    outcome: str
    """One of `OUTCOMES`."""
    reason: str = ""
    """The reason, in the rule's words."""
    key: str = ""
    """The key of its customer."""
    acknowledged: str = ""
    """Whether Customer.io has acknowledged it: `yes`, `not yet` or `refused: <reason>`."""


class Attribute(NamedTuple):
    """The last value of an attribute on these days, when it was set, and whether Customer.io has acknowledged it,
    or why it will not."""

    key: str
    attribute: str
    value: Any
    set_at: str
    acknowledged: str


class LeftOut(NamedTuple):
    """An attribute or property of a sent event that was left out or changed, and why."""

    time: str
    event: str
    what: str
    name: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """What became of a person's events and attributes. names: the person's distinct_ids, and emails in lower case (R21)."""

    names: list[str]
    events: list[Event]
    attributes: list[Attribute]
    left_out: list[LeftOut]


def explain(names: Iterable[str], records: PersonRecords) -> Explanation:
    """Returns what became of each event, in order of time, and of each attribute, in order of key and name.

    It says what the tables say. For an event that is in none of them, the reason is that of the current settings.
    """
    return Explanation(sorted(names), _events(records), _attributes(records), _left_out(records))


def _events(records: PersonRecords) -> list[Event]:
    sent = {_identity(row, row.name): row for row in _rows(records.sent)}
    refused = {_identity(row, row.event): row.reason for row in _rows(records.rejects) if row.what == "event"}
    events = []
    for row in _rows(records.events.sort_values(["timestamp", "uuid", "event", "distinct_id"])):
        event = Event(_time(row.timestamp), row.event, row.distinct_id, row.uuid, row.outcome)
        identity = _identity(row, row.event)
        if identity in sent:
            events.append(_sent(event, row.day, sent[identity], records))
        elif identity in refused:
            events.append(event._replace(outcome="refused", reason=refused[identity]))
        else:
            events.append(_not_sent(event, row.day, records))
    return events


def _identity(row: Any, name: str) -> tuple[Any, ...]:
    """Returns what identifies an event in each of the tables."""
    return (row.timestamp, row.uuid, name.strip(), row.distinct_id)


def _sent(event: Event, day: str, sent: Any, records: PersonRecords) -> Event:
    reason = f"stitched, and sent with {sent.day} (R16)" if sent.day != day else ""
    event = event._replace(outcome="sent", reason=reason, key=sent.key, acknowledged=NOT_YET)
    if sent.ulid in records.acknowledged:
        return event._replace(acknowledged=ACKNOWLEDGED)
    if refusal := records.refused.get((sent.day, sent.ulid)):
        return event._replace(acknowledged=f"refused: {refusal}")
    return event._replace(outcome="suppressed", reason=SUPPRESSED, acknowledged="") if records.is_suppressed else event


def _not_sent(event: Event, day: str, records: PersonRecords) -> Event:
    for prefix, kind in ((FILTERED, "filtered"), (REFUSED, "refused")):
        if event.outcome.startswith(prefix):
            return event._replace(outcome=kind, reason=event.outcome.removeprefix(prefix))
    late = (
        "its day must be derived again: events, settings or earlier days have changed since" if day in records.derived else ""
    )
    return event._replace(outcome="not derived yet", reason=late)


def _attributes(records: PersonRecords) -> list[Attribute]:
    last: dict[tuple[str, str], Attribute] = {}
    for row in _rows(records.upserts.sort_values("day", kind="stable")):
        state, stored = unpack(row.state), records.states.get(row.key, {})
        refusal = records.refused.get((row.day, upsert_id(row.key, row.part)))
        for name, value in read_object(row.operation)["attributes"].items():
            value_hash, time = state[name_hash(name)]
            acknowledged_hash, acknowledged_time = stored.get(name_hash(name), (b"", 0))
            acknowledged = f"refused: {refusal}" if refusal else SUPPRESSED if records.is_suppressed else NOT_YET
            if acknowledged_hash == value_hash:
                acknowledged = ACKNOWLEDGED
            elif acknowledged_hash and acknowledged_time > time:
                acknowledged = NEWER
            attribute = Attribute(row.key, name, value, _time(datetime.fromtimestamp(time, UTC)), acknowledged)
            before = last.get((row.key, name), attribute)
            last[row.key, name] = max(before, attribute, key=lambda one: one.set_at)
    return [last[where] for where in sorted(last)]


def _left_out(records: PersonRecords) -> list[LeftOut]:
    rows = _rows(records.rejects.sort_values("timestamp", kind="stable"))
    return [LeftOut(_time(row.timestamp), row.event, row.what, row.name, row.reason) for row in rows if row.what != "event"]


def _time(time: Any) -> str:
    """Returns a time as text, in UTC, to the second."""
    return str(time).partition("+")[0].partition(".")[0]


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    return frame.itertuples(index=False)


def mask_explanation(explanation: Explanation) -> Explanation:
    """Returns the explanation with ids, emails and names masked, and kinds instead of values."""
    return Explanation(
        [mask_id(name) for name in explanation.names],
        [
            one._replace(
                event=mask(one.event),
                distinct_id=mask_id(one.distinct_id),
                uuid="",
                key=one.key and mask_key(one.key),
                acknowledged=mask(one.acknowledged),
            )
            for one in explanation.events
        ],
        [
            one._replace(
                key=mask_key(one.key),
                attribute=mask(one.attribute),
                value=_kind(one.value),
                acknowledged=mask(one.acknowledged),
            )
            for one in explanation.attributes
        ],
        [one._replace(event=mask(one.event), name=mask(one.name)) for one in explanation.left_out],
    )


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", dict: "an object", list: "a list", type(None): "null"}
    if isinstance(value, str):
        return f"text of {len(value):,} characters"
    return kinds.get(type(value), "a number")  # an int, a float, or the `orjson.Fragment` of a long integer
