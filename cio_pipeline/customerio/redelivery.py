"""What of a day's refused items is sent again: what the day's tables still say, without what newer data has replaced."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.attribute_state import pack, upsert_id
from cio_pipeline.customerio.batches import BYTES, TEXT, Events, Item
from cio_pipeline.customerio.plan import CAMPAIGN_WINDOW_SECONDS, LedgerView, Plan, plan_upsert
from cio_pipeline.customerio.selection import Columns, DeliveryOptions, ShardPairs, column, suppressed_keys
from cio_pipeline.json_text import read_object, write
from cio_pipeline.packed_ids import are_in, pack_ids
from cio_pipeline.rules.columns import to_list
from cio_pipeline.rules.consent import is_consent, without_disallowed_consent
from cio_pipeline.rules.items import V1_CALL
from cio_pipeline.state.refusals import Refusal


@dataclass
class ComparedRefusals:
    """Refused items of a day, by what its tables, derived under the current settings, say of them now."""

    unchanged: list[Refusal]
    """To be sent again: the tables have the event's operation, or all of the upsert's attributes, as far as R19 lets them pass
    now."""
    changed: list[Refusal]
    """The tables have the event, or this upsert, with other content, which a run of the day sends."""
    gone: list[Refusal]
    """The tables no longer have the event or this upsert: the customer is gone, or needs fewer upserts."""
    suppressed: list[Refusal]
    """The person is on the suppression list."""


def compare_with_tables(refused: list[Refusal], shards: ShardPairs, options: DeliveryOptions) -> ComparedRefusals:
    """Returns which of a day's refused items its tables still have.

    The tables also have emails and distinct_ids of suppressed people that a refused event does not name.
    """
    suppressed = options.suppressed
    ids = {refusal.item_id for refusal in refused if refusal.kind == "event"}
    keys = {refusal.key for refusal in refused if refusal.kind == "customer"}
    operations: dict[str, bytes] = {}
    attributes: defaultdict[str, dict[str, bytes]] = defaultdict(dict)
    upserts: set[str] = set()
    left_out: set[str] = set()
    for customers, events in shards:
        operations |= _rows_of(events, "ulid", ids, "operation")
        for key, upsert in _rows_of(customers, "key", keys, "operation"):
            attributes[key] |= _attributes(upsert.decode(), options)
        parts = _rows_of(customers, "key", keys, "part", pa.int32())
        upserts |= {upsert_id(key, part) for key, part in parts}
        left_out |= suppressed_keys(suppressed, customers, events) if suppressed else set()
    compared = ComparedRefusals([], [], [], [])
    for refusal in refused:
        if refusal.kind == "event":
            is_there = refusal.item_id in operations
            is_same = is_there and operations[refusal.item_id] == refusal.operation.encode()
        else:
            is_there = refusal.item_id in upserts
            own = _attributes(refusal.operation, options)
            is_same = refusal.key in attributes and own.items() <= attributes[refusal.key].items()
        if refusal.key in left_out or suppressed.has_customer(refusal.key, refusal.operation):
            compared.suppressed.append(refusal)
        elif is_same:
            compared.unchanged.append(refusal)
        elif is_there:
            compared.changed.append(refusal)
        else:
            compared.gone.append(refusal)
    return compared


def _rows_of(rows: Columns, by: str, wanted: set[str], name: str, kind: pa.DataType = BYTES) -> Iterator[tuple[str, Any]]:
    """Yields the wanted texts that the column `by` has, each with what the column `name`, of this type, has beside it."""
    texts = column(rows, by)
    found = pc.is_in(texts, pa.array(list(wanted), TEXT))
    if pc.any(found).as_py():
        yield from zip(to_list(texts.filter(found)), to_list(column(rows, name, kind).filter(found)), strict=True)


def _attributes(upsert: str, options: DeliveryOptions) -> dict[str, bytes]:
    """Returns an upsert's attributes as JSON, by name, as far as R19 lets them pass."""
    passed, _ = without_disallowed_consent(read_object(upsert)["attributes"], options.allow_consent)
    return {name: write(value) for name, value in passed.items()}


def plan_redelivery(refused: list[Refusal], recorded: LedgerView, options: DeliveryOptions) -> Plan:
    """Returns the plan of what Customer.io refused, upserts, then events by time, without what was set or delivered since, or
    R19 leaves out."""
    plan, events = Plan(), list[Refusal]()
    for refusal in sorted(refused, key=_upserts_then_events_by_time):
        if refusal.kind == "customer":
            is_new = not recorded.states.get(refusal.key)
            upsert = Item(refusal.item_id, refusal.key, refusal.operation.encode(), state=pack(refusal.state), is_new=is_new)
            has_consent = options.allow_consent != "Yes" and any(map(is_consent, read_object(refusal.operation)["attributes"]))
            planned = plan_upsert(upsert, recorded, plan, options, has_consent=has_consent)
            plan.upserts += [] if planned is None else [planned]
        elif are_in(recorded.delivered, pack_ids([refusal.item_id]))[0]:
            plan.closed_ids.append(refusal.item_id)
        else:
            events.append(refusal)
    columns = ([one.item_id for one in events], [one.key for one in events], [one.operation for one in events])
    ids, keys, operations = (pa.array(texts, TEXT) for texts in columns)
    is_v1_call, since = np.array([one.call == V1_CALL for one in events], bool), time.time() - CAMPAIGN_WINDOW_SECONDS
    can_start = np.array([int(read_object(one.operation)["timestamp"]) > since for one in events], bool)
    plan.events = Events(ids, keys, operations.cast(BYTES), is_v1_call, can_start)
    plan.without_upsert = {one.key: False for one in events if not recorded.states.get(one.key)}
    return plan


def _upserts_then_events_by_time(refusal: Refusal) -> tuple[bool, int, str]:
    return refusal.kind == "event", int(read_object(refusal.operation)["timestamp"]), refusal.item_id
