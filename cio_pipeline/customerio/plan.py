"""What of the tables is still to be sent, given what the ledger knows."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import orjson
import pandas as pd

from cio_pipeline.connector.jsontext import read_object, write
from cio_pipeline.customerio.items import Item
from cio_pipeline.ledger.ledger import Refusal
from cio_pipeline.ledger.state import State, name_hash, state_time, value_hash


class Plan:
    """Items to send, states to note without sending, and a count of what needs no sending, by reason."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.unsent: dict[str, State] = {}
        self.counts: Counter[str] = Counter()


def plan(
    customers: pd.DataFrame, events: pd.DataFrame, states: dict[str, State], delivered: Any, refused: dict[str, Refusal]
) -> Plan:
    """Upserts first, then events by time, of one shard of the tables.

    `states` and `delivered` are the ledger's, of these customers and of the day; what Customer.io refused before is not sent
    again as it was.
    """
    made = Plan()
    rows: Iterable[Any] = customers.itertuples(index=False)
    for row in rows:
        _plan_customer(row, states.get(row.key, {}), made)
    for item in _new_events(events, delivered, made):
        made.items.append(item)
    made.items = list(_not_refused_before(made, refused))
    return made


def _plan_customer(row: Any, known: State, made: Plan) -> None:
    """R17: attributes that a later event has set are left out; nothing goes where nothing would change."""
    operation = read_object(row.operation)
    attributes, times = operation["attributes"], orjson.loads(row.times)
    state = {name_hash(name): (value_hash(write(value)), state_time(times[name])) for name, value in attributes.items()}
    current = {name: entry for name, entry in state.items() if name not in known or known[name][1] <= entry[1]}
    if all(name in known and known[name][0] == value for name, (value, _) in current.items()):
        made.counts["customers with nothing new"] += 1
        if any(known[name] != entry for name, entry in current.items()):
            made.unsent[row.key] = {**made.unsent.get(row.key, {}), **current}
        return
    text = row.operation.encode()
    if len(current) < len(state):
        made.counts["attributes newer in Customer.io"] += len(state) - len(current)
        kept = {name: value for name, value in attributes.items() if name_hash(name) in current}
        text = write({**operation, "timestamp": max(times[name] for name in kept), "attributes": kept})
    made.items.append(Item(f"{row.key}#{row.part}", row.key, text, state=current))


def _new_events(events: pd.DataFrame, delivered: Any, made: Plan) -> Iterator[Item]:
    uuids = events["uuid"].tolist()
    packed = np.frombuffer(b"".join(uuid.UUID(value).bytes for value in uuids), dtype="S16")
    new = ~np.isin(packed, delivered)
    made.counts["events delivered before"] += int(len(new) - new.sum())
    for row in events[new].itertuples(index=False):
        yield Item(row.uuid, row.key, row.operation.encode(), call=row.call)


def _not_refused_before(made: Plan, refused: dict[str, Refusal]) -> Iterator[Item]:
    for item in made.items:
        before = refused.get(item.name)
        if before is not None and before.operation == item.operation.decode():
            made.counts["refused before"] += 1
        else:
            yield item
