"""What of the tables is still to be sent, given what the ledger knows and what was chosen."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from cio_pipeline.customer_state import State, name_hash, pack_ids, unpack, value_hash
from cio_pipeline.customerio.batches import Item
from cio_pipeline.customerio.suppression import Suppressed
from cio_pipeline.json_text import read_object, write
from cio_pipeline.rules.consent import AllowConsent, consents
from cio_pipeline.state.ledger import Refusal
from cio_pipeline.state.ledger_tables import customer_item


@dataclass(frozen=True)
class Choices:
    """How a delivery departs from the ordinary one.

    suppressed: who must not be sent; resend: sends what the ledger has as delivered, unchanged or refused, too; limit: only the
    first so many customers of the day, with their events; allow_consent: R19, for what was
    made under another setting.
    """

    suppressed: Suppressed = field(default_factory=Suppressed)
    resend: bool = False
    limit: int | None = None
    allow_consent: AllowConsent = "unsubscribe"


ORDINARY = Choices()

TRIGGER_SECONDS = 72 * 3600
"""Events younger than this start campaigns (Track API, OpenAPI)."""

Shards = Iterable[tuple[pd.DataFrame, pd.DataFrame]]
"""A day's customers and events. A customer and their events are in one shard, so that each is known by what the other tells."""


@dataclass(frozen=True)
class Known:
    """What the ledger knows: the states of these customers, the day's delivered events, and its refusals by item."""

    states: dict[str, State]
    delivered: Any
    refused: dict[str, Refusal]


@dataclass
class Plan:
    """Items to send; states to note and refusals to close without sending; a count of what needs no sending, by reason; and
    the latest time of the upserts to send, by key (Unix seconds)."""

    items: list[Item] = field(default_factory=list)
    unsent: dict[str, State] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    latest: dict[str, int] = field(default_factory=dict)


def chosen(shards: Shards, choices: Choices, counts: Counter[str]) -> Shards:
    """The shards without who is suppressed, and no more customers than the limit; counts what is left out."""
    return _first(choices.limit, _without(choices.suppressed, shards, counts), counts)


def _without(suppressed: Suppressed, shards: Shards, counts: Counter[str]) -> Shards:
    for customers, events in shards:
        keys = suppressed.keys(customers, events)
        theirs, gone = customers["key"].isin(keys), events["key"].isin(keys)
        counts["customers suppressed"] += len(keys)
        counts["events suppressed"] += int(gone.sum())
        yield customers[~theirs], events[~gone]


def _first(limit: int | None, shards: Shards, counts: Counter[str]) -> Shards:
    left = limit
    for customers, events in shards:
        if left is None:
            yield customers, events
            continue
        keys, beyond = customers["key"].unique()[:left], customers["key"].unique()[left:]
        left -= len(keys)
        counts["customers beyond the limit"] += len(beyond)
        counts["events beyond the limit"] += int(events["key"].isin(beyond).sum())
        yield customers[customers["key"].isin(keys)], events[events["key"].isin(keys)]


def plan(customers: pd.DataFrame, events: pd.DataFrame, known: Known, choices: Choices) -> Plan:
    """Upserts first, then events by time, of one shard of the tables; what was refused is not sent again as it was."""
    made = Plan()
    with_person = set(events.loc[~events["personless"].to_numpy(bool), "key"])
    columns = (customers[name].tolist() for name in ("key", "part", "operation", "state"))
    for key, part, operation, state in zip(*columns, strict=True):
        upsert = Item(customer_item(key, part), key, operation.encode(), is_personless=key not in with_person)
        times = {name: time for name, (_, time) in unpack(state).items()}
        _plan_customer(upsert, times, known, made, choices)
    made.items += _new_events(events, known, choices, made)
    if not choices.resend:
        made.items = list(_not_refused_before(made, known.refused))
    return made


def plan_again(refused: list[Refusal], known: Known, choices: Choices) -> Plan:
    """What Customer.io refused, less what has been set or delivered since, or R19 leaves out: upserts, then events by time."""
    made = Plan()
    for refusal in sorted(refused, key=_upserts_then_events_by_time):
        item = Item(refusal.item, refusal.key, refusal.operation.encode(), call=refusal.call)
        if refusal.kind == "customer":
            _plan_customer(item, {name: time for name, (_, time) in refusal.state.items()}, known, made, choices)
        elif among(known.delivered, pack_ids([refusal.item]))[0]:
            made.settled.append(item.name)
        else:
            made.items.append(item)
    return made


def _upserts_then_events_by_time(refusal: Refusal) -> tuple[bool, int, str]:
    return refusal.kind == "event", int(read_object(refusal.operation)["timestamp"]), refusal.item


def _plan_customer(upsert: Item, times: dict[bytes, int], known: Known, made: Plan, choices: Choices) -> None:
    """R17: attributes that a later event has set are left out; nothing goes where nothing would change.

    An upsert has one time for all that it holds. It is as late as any that was sent for the customer before, for else
    Customer.io might drop what it changes, or all of it.
    """
    operation = read_object(upsert.operation.decode())
    attributes, unheard = consents(operation["attributes"], choices.allow_consent)
    standing = known.states.get(upsert.key, {})
    state = {name_hash(name): (value_hash(write(value)), times[name_hash(name)]) for name, value in attributes.items()}
    current = {name: entry for name, entry in state.items() if name not in standing or standing[name][1] <= entry[1]}
    made.counts["attributes about consent left out (R19)"] += len(unheard)
    made.counts["attributes newer in Customer.io"] += len(state) - len(current)
    if not current:
        made.counts["customers older than in Customer.io"] += 1
        made.settled.append(upsert.name)
    elif not choices.resend and all(name in standing and standing[name][0] == value for name, (value, _) in current.items()):
        made.counts["customers with nothing new"] += 1
        made.settled.append(upsert.name)
        if any(standing[name] != entry for name, entry in current.items()):
            made.unsent[upsert.key] = {**made.unsent.get(upsert.key, {}), **current}
    else:
        kept = {name: value for name, value in attributes.items() if name_hash(name) in current}
        newest = max(
            made.latest.get(upsert.key, 0), *(times[name_hash(name)] for name in kept), *(time for _, time in standing.values())
        )
        if len(kept) == len(operation["attributes"]):
            newest = max(newest, operation["timestamp"])
        made.latest[upsert.key] = newest
        text = _upsert(operation, kept, newest) or upsert.operation
        is_new = upsert.key not in known.states and not (made.items and made.items[-1].key == upsert.key)
        personless = is_new and upsert.is_personless
        made.items.append(replace(upsert, operation=text, state=current, is_new=is_new, is_personless=personless))


def _upsert(operation: dict[str, Any], kept: dict[str, Any], newest: int) -> bytes | None:
    """The operation with the attributes that are kept and that time; None where it stays as it is."""
    if len(kept) == len(operation["attributes"]) and newest == operation["timestamp"]:
        return None
    return write({**operation, "timestamp": newest, "attributes": kept})


def _new_events(events: pd.DataFrame, known: Known, choices: Choices, made: Plan) -> Iterator[Item]:
    if not choices.resend:
        before = among(known.delivered, pack_ids(events["ulid"].tolist()))
        made.settled += events.loc[before, "ulid"].tolist()
        made.counts["events delivered before"] += int(before.sum())
        events = events[~before]
    columns = (events[name].tolist() for name in ("ulid", "key", "operation", "call"))
    for event_id, key, operation, call in zip(*columns, strict=True):
        yield Item(event_id, key, operation.encode(), call=call)


def among(delivered: Any, packed: Any) -> Any:
    """Which of some packed ids are in a sorted array of them."""
    if not len(delivered):
        return np.zeros(len(packed), dtype=bool)
    at = np.searchsorted(delivered, packed).clip(max=len(delivered) - 1)
    return delivered[at] == packed


def _not_refused_before(made: Plan, refused: dict[str, Refusal]) -> Iterator[Item]:
    for item in made.items:
        before = refused.get(item.name)
        if before is not None and before.operation == item.operation.decode():
            made.counts[f"refused before: {before.reason}"] += 1
        else:
            yield item
