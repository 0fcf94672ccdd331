"""What of the tables is still to be sent, given what the ledger knows and what was chosen."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import pandas as pd

from cio_pipeline.connector.jsontext import read_object, write
from cio_pipeline.customerio.items import Item
from cio_pipeline.customerio.suppressed import Suppressed
from cio_pipeline.ledger.ledger import Refusal
from cio_pipeline.ledger.schema import customer_item
from cio_pipeline.ledger.state import State, name_hash, state_time, value_hash


@dataclass(frozen=True)
class Choices:
    """How a delivery departs from the ordinary one.

    suppressed: who must not be sent; resend: sends what the ledger has as delivered, unchanged or refused, too; limit: only the
    first so many customers of the day, with their events; hold_since: keeps events of this time (Unix seconds) and later for
    another run.
    """

    suppressed: Suppressed = field(default_factory=Suppressed)
    resend: bool = False
    limit: int | None = None
    hold_since: float | None = None


ORDINARY = Choices()


@dataclass(frozen=True)
class Known:
    """What the ledger knows: the states of these customers, the day's delivered events, and its refusals by item."""

    states: dict[str, State]
    delivered: Any
    refused: dict[str, Refusal]


@dataclass
class Plan:
    """Items to send; states to note and refusals to close without sending; a count of what needs no sending, by reason."""

    items: list[Item] = field(default_factory=list)
    unsent: dict[str, State] = field(default_factory=dict)
    settled: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def plan(customers: pd.DataFrame, events: pd.DataFrame, known: Known, choices: Choices) -> Plan:
    """Upserts first, then events by time, of one shard of the tables; what was refused is not sent again as it was."""
    made = Plan()
    rows: Iterable[Any] = customers.itertuples(index=False)
    for row in rows:
        times = orjson.loads(row.times)
        upsert = Item(customer_item(row.key, row.part), row.key, row.operation.encode())
        _plan_customer(upsert, times, known, made, resend=choices.resend)
    made.items += _new_events(events, known, choices, made)
    if not choices.resend:
        made.items = list(_not_refused_before(made, known.refused))
    return made


def plan_again(refused: list[Refusal], known: Known) -> Plan:
    """What Customer.io refused, as it was refused, less what has been set or delivered since: upserts, then events by time."""
    made = Plan()
    for refusal in sorted(refused, key=_upserts_then_events_by_time):
        item = Item(refusal.item, refusal.key, refusal.operation.encode(), call=refusal.call)
        if refusal.kind == "customer":
            names = read_object(refusal.operation)["attributes"]
            _plan_customer(item, {name: refusal.state[name_hash(name)][1] for name in names}, known, made, resend=False)
        elif np.isin(_packed([refusal.item]), known.delivered)[0]:
            made.settled.append(item.name)
        else:
            made.items.append(item)
    return made


def _upserts_then_events_by_time(refusal: Refusal) -> tuple[bool, int, str]:
    return refusal.kind == "event", int(read_object(refusal.operation)["timestamp"]), refusal.item


def _plan_customer(upsert: Item, times: dict[str, int], known: Known, made: Plan, *, resend: bool) -> None:
    """R17: attributes that a later event has set are left out; nothing goes where nothing would change."""
    operation = read_object(upsert.operation.decode())
    attributes, standing = operation["attributes"], known.states.get(upsert.key, {})
    state = {name_hash(name): (value_hash(write(value)), state_time(times[name])) for name, value in attributes.items()}
    current = {name: entry for name, entry in state.items() if name not in standing or standing[name][1] <= entry[1]}
    made.counts["attributes newer in Customer.io"] += len(state) - len(current)
    if not current:
        made.counts["customers older than in Customer.io"] += 1
        made.settled.append(upsert.name)
    elif not resend and all(name in standing and standing[name][0] == value for name, (value, _) in current.items()):
        made.counts["customers with nothing new"] += 1
        made.settled.append(upsert.name)
        if any(standing[name] != entry for name, entry in current.items()):
            made.unsent[upsert.key] = {**made.unsent.get(upsert.key, {}), **current}
    else:
        kept = {name: value for name, value in attributes.items() if name_hash(name) in current}
        text = _upsert(operation, kept, max(times[name] for name in kept), standing) or upsert.operation
        is_new = upsert.key not in known.states and not (made.items and made.items[-1].key == upsert.key)
        made.items.append(Item(upsert.name, upsert.key, text, state=current, is_new=is_new))


def _upsert(operation: dict[str, Any], kept: dict[str, Any], newest: int, standing: State) -> bytes | None:
    """The operation with the attributes that are kept; None where it stays as it is.

    Its time is that of its newest attribute. An attribute that changes may stand in Customer.io under a later time, for an
    upsert has one time for all it holds: then it is as late as any that we have sent, or the change would be lost.
    """
    if any(name_hash(name) in standing for name in kept):
        newest = max(newest, *(time for _, time in standing.values()))
    if len(kept) == len(operation["attributes"]) and newest == operation["timestamp"]:
        return None
    return write({**operation, "timestamp": newest, "attributes": kept})


def _new_events(events: pd.DataFrame, known: Known, choices: Choices, made: Plan) -> Iterator[Item]:
    new: Any = np.ones(len(events), dtype=bool)
    if not choices.resend:
        new = ~np.isin(_packed(events["uuid"].tolist()), known.delivered)
        made.settled += events.loc[~new, "uuid"].tolist()
        made.counts["events delivered before"] += int(len(new) - new.sum())
    if choices.hold_since is not None:
        recent = (events["timestamp"] >= pd.Timestamp(choices.hold_since, unit="s", tz="UTC")).to_numpy()
        made.counts["events held as too recent"] += int((new & recent).sum())
        new &= ~recent
    rows: Iterable[Any] = events[new].itertuples(index=False)
    for row in rows:
        yield Item(row.uuid, row.key, row.operation.encode(), call=row.call)


def _packed(uuids: list[str]) -> Any:
    return np.frombuffer(b"".join(uuid.UUID(value).bytes for value in uuids), dtype="S16")


def _not_refused_before(made: Plan, refused: dict[str, Refusal]) -> Iterator[Item]:
    for item in made.items:
        before = refused.get(item.name)
        if before is not None and before.operation == item.operation.decode():
            made.counts[f"refused before: {before.reason}"] += 1
        else:
            yield item
