"""Plans a delivery: what is still to be sent of a day's tables, given the ledger and the delivery's options.

An event is sent as its table has it, unless it was delivered, or was refused as it is. An upsert is sent unless it says nothing
new, or the same attributes were refused, and it may differ from its table:

- without the attributes of which Customer.io has newer values, recorded or perhaps in flight (R17);
- without those about consent that CIO_ALLOW_CONSENT no longer allows; of preferences, single topics may remain (R19);
- with a later time, if the customer has had an upsert with a later one, sent or in flight: Customer.io might ignore one with an
  earlier time (R17).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.attribute_state import State, latest_time, merge, name_hash, pack, state_time, unpack, upsert_id, value_hash
from cio_pipeline.customerio.batches import BYTES, Events, Item, pack_id_column
from cio_pipeline.customerio.counts import (
    ALL_ATTRIBUTES_NEWER,
    CONSENT_LEFT_OUT,
    EVENTS_DELIVERED_BEFORE,
    NEWER_ATTRIBUTES,
    UPSERTS_WITH_NOTHING_NEW,
    refused_before,
)
from cio_pipeline.customerio.in_flight import InFlight
from cio_pipeline.customerio.selection import Columns, DeliveryOptions, column, texts
from cio_pipeline.json_text import read_object, write
from cio_pipeline.packed_ids import are_in
from cio_pipeline.rules.columns import TIME, Bools, to_list
from cio_pipeline.rules.consent import is_consent, without_disallowed_consent
from cio_pipeline.rules.items import V1_CALL
from cio_pipeline.rules.limits import MAX_ATTRIBUTE_NAME_BYTES
from cio_pipeline.state.refusals import Refusal

CAMPAIGN_WINDOW_SECONDS = 72 * 3600
"""Events younger than this start campaigns (Track API, OpenAPI)."""


@dataclass(frozen=True)
class LedgerView:
    """The ledger's records that a plan depends on.

    states: packed states of customers, by key; delivered: the ids of the day's delivered events (`Ledger.delivered`); refused:
    the day's refusals, by item id; in_flight: what was being sent when a delivery was cut off.
    """

    states: Mapping[str, bytes]
    delivered: npt.NDArray[np.bytes_]
    refused: dict[str, Refusal]
    in_flight: InFlight = field(default_factory=InFlight)


@dataclass
class Plan:
    """What a delivery is to do."""

    upserts: list[Item] = field(default_factory=list)
    events: Events = field(default_factory=Events)
    states: dict[str, bytes] = field(default_factory=dict)
    """Packed states to record without sending, by key."""
    closed_ids: list[str] = field(default_factory=list)
    """The ids of items whose refusals are to be closed without sending."""
    counts: Counter[str] = field(default_factory=Counter)
    """What need not be sent, by reason."""
    without_upsert: dict[str, bool] = field(default_factory=dict)
    """New customers with an upsert that was refused before, by key: an event creates them. The value says whether they have
    only personless events."""
    latest: dict[str, int] = field(default_factory=dict)
    """The latest time of each customer's upserts so far (Unix seconds), by key."""


def plan_shard(customers: Columns, events: Columns, recorded: LedgerView, options: DeliveryOptions) -> Plan:
    """Returns the plan of one shard: upserts, then events by time. What was refused is not sent again unless it has changed.

    The columns of operations are read only where something is to be sent.
    """
    plan = Plan()
    _plan_customers(customers, events, recorded, options, plan)
    plan.events = _new_events(events, recorded, options, plan)
    return plan


def _plan_customers(customers: Columns, events: Columns, recorded: LedgerView, options: DeliveryOptions, plan: Plan) -> None:
    """Adds the customers' upserts to the plan. For most customers the ledger records nothing, or exactly what the table says;
    then no operation is parsed."""
    keys, parts, states = (
        texts(customers, "key"),
        _column_list(customers, "part", pa.int32()),
        _column_list(customers, "state", BYTES),
    )
    have_consent = _column_list(customers, "consent", pa.bool_()) if options.allow_consent != "Yes" else [False] * len(keys)
    in_parts = {key for key, part in zip(keys, parts, strict=True) if part}
    with_person = _with_person(events)
    operations = cache(lambda: _column_list(customers, "operation", BYTES))
    for row, (key, part, state, consent) in enumerate(zip(keys, parts, states, have_consent, strict=True)):
        stored = recorded.states.get(key, b"")
        if state == stored and not consent and not options.resend and key not in recorded.in_flight:
            _nothing_new(upsert_id(key, part) if recorded.refused else "", recorded, plan)
            continue
        personless, operation = key not in with_person, operations()[row]
        upsert = Item(
            upsert_id(key, part), key, operation, state=state, is_new=not stored, is_personless=not stored and personless
        )
        planned: Item | None = upsert
        if stored or consent or key in in_parts or key in recorded.in_flight:
            planned = plan_upsert(upsert, recorded, plan, options, has_consent=consent)
        if planned is None:
            continue
        if recorded.refused and _is_refused_before(planned, recorded, options, plan):
            plan.without_upsert |= {key: planned.is_personless} if planned.is_new else {}
        else:
            plan.upserts.append(planned)


def _with_person(events: Columns) -> set[str]:
    """Returns the keys that have events which are not personless."""
    personless = column(events, "personless", pa.bool_())
    return set(column(events, "key").filter(pc.invert(personless)).unique().to_pylist())


def _column_list(rows: Columns, name: str, kind: pa.DataType) -> list[Any]:
    return to_list(column(rows, name, kind))


def plan_upsert(upsert: Item, recorded: LedgerView, plan: Plan, options: DeliveryOptions, *, has_consent: bool) -> Item | None:
    """Returns the upsert as it is to be sent (see above), or None if it would change nothing. Notes in the plan what is left
    out, recorded or closed without sending, and the customer's latest time.

    has_consent: whether it may have attributes about consent that R19 leaves out.
    """
    stored, given = unpack(recorded.states.get(upsert.key, b"")), unpack(upsert.state)
    in_flight, state, operation = recorded.in_flight, given, None
    if has_consent:
        operation, state = _without_consent(read_object(upsert.operation.decode()), given, options, plan)
    current = _not_older(state, merge(stored, in_flight.state(upsert.key)))
    plan.counts[NEWER_ATTRIBUTES] += len(state) - len(current)
    if state and not current:
        plan.counts[ALL_ATTRIBUTES_NEWER] += 1
        _close(upsert.item_id, recorded, plan)
        return None
    if not state or (_has_same_values(current, stored) and upsert.key not in in_flight and not options.resend):
        _nothing_new(upsert.item_id, recorded, plan)
        if any(stored[name] != entry for name, entry in current.items()):
            plan.states[upsert.key] = plan.states.get(upsert.key, b"") + pack(current)
        return None
    times = (latest_time(current), latest_time(stored), in_flight.time(upsert.key), plan.latest.get(upsert.key, 0))
    plan.latest[upsert.key] = newest = max(times)
    if operation is None and len(current) == len(given) and newest == latest_time(given):
        return upsert
    operation = operation or read_object(upsert.operation.decode())
    return upsert._replace(operation=_rewritten(operation, current, newest), state=pack(current))


def _not_older(state: State, known: State) -> State:
    """R17: returns the attributes of which nothing newer is known."""
    return {name: entry for name, entry in state.items() if name not in known or known[name][1] <= entry[1]}


def _has_same_values(state: State, stored: State) -> bool:
    """Returns whether the ledger has recorded each of the attributes with the same value, at whatever time."""
    return all(name in stored and stored[name][0] == value for name, (value, _) in state.items())


def _without_consent(
    operation: dict[str, Any], state: State, options: DeliveryOptions, plan: Plan
) -> tuple[dict[str, Any], State]:
    """R19: an upsert that was derived under another setting, without the attributes about consent that this one does not allow,
    or that it names at more length than R10 allows.

    An attribute that passes under another name than it came with counts as set at the latest time of those about consent.
    """
    given = operation["attributes"]
    latest = max((state[name_hash(name)][1] for name in given if is_consent(name)), default=0)
    allowed, left_out = without_disallowed_consent(given, options.allow_consent)
    passed = {name: value for name, value in allowed.items() if len(name.encode()) <= MAX_ATTRIBUTE_NAME_BYTES}
    plan.counts[CONSENT_LEFT_OUT] += len(left_out) + len(allowed) - len(passed)
    times = {name: state.get(name_hash(name), (b"", latest))[1] for name in passed}
    return {**operation, "attributes": passed}, {
        name_hash(name): (value_hash(write(value)), times[name]) for name, value in passed.items()
    }


def _rewritten(operation: dict[str, Any], current: State, newest: int) -> bytes:
    """Returns the upsert with only the current attributes, and with this time."""
    kept = {name: value for name, value in operation["attributes"].items() if name_hash(name) in current}
    seconds = operation["timestamp"]
    return write({**operation, "timestamp": seconds if state_time(seconds) == newest else newest, "attributes": kept})


def _nothing_new(item_id: str, recorded: LedgerView, plan: Plan) -> None:
    plan.counts[UPSERTS_WITH_NOTHING_NEW] += 1
    _close(item_id, recorded, plan)


def _close(item_id: str, recorded: LedgerView, plan: Plan) -> None:
    if item_id in recorded.refused:
        plan.closed_ids.append(item_id)


def _is_refused_before(item: Item, recorded: LedgerView, options: DeliveryOptions, plan: Plan) -> bool:
    """Returns whether Customer.io has refused this operation, or an upsert of the same attributes. An upsert in flight may have
    been accepted since."""
    before = recorded.refused.get(item.item_id)
    if options.resend or before is None or (item.is_customer and item.key in recorded.in_flight):
        return False
    operation = item.operation.decode()
    if operation != before.operation and not (item.is_customer and _attributes(operation) == _attributes(before.operation)):
        return False
    plan.counts[refused_before(before.reason)] += 1
    return True


def _attributes(upsert: str) -> bytes:
    return write(read_object(upsert)["attributes"])


def _new_events(events: Columns, recorded: LedgerView, options: DeliveryOptions, plan: Plan) -> Events:
    """Returns the events that were neither delivered nor refused as they are now."""
    ids = column(events, "ulid")
    before = are_in(recorded.delivered, pack_id_column(ids)) if len(recorded.delivered) else np.zeros(len(events), bool)
    if options.resend:
        return _with_operations(events, before)
    plan.counts[EVENTS_DELIVERED_BEFORE] += int(before.sum())
    if recorded.refused:
        plan.closed_ids += [item_id for item_id in to_list(ids.filter(pa.array(before))) if item_id in recorded.refused]
    if before.all():
        return Events()
    unsent = _with_operations(events, before)
    if before.any():
        unsent = unsent.take(np.flatnonzero(~before))
    if not recorded.refused:
        return unsent
    kept = [not _is_refused_before(item, recorded, options, plan) for item in unsent.items()]
    return unsent.take(np.flatnonzero(kept))


def _with_operations(events: Columns, before: Bools) -> Events:
    """Returns the events with what it takes to send them. before: which of them were delivered before; these start no campaign
    again."""
    is_v1_call = pc.equal(column(events, "call"), V1_CALL).to_numpy(zero_copy_only=False)
    columns = (column(events, "ulid"), column(events, "key"), column(events, "operation", BYTES))
    return Events(*columns, is_v1_call, within_campaign_window(events) & ~before)


def within_campaign_window(events: Columns) -> Bools:
    """Returns which of the events may start campaigns, by their age now."""
    since = pa.scalar(int((time.time() - CAMPAIGN_WINDOW_SECONDS) * 1_000_000), TIME)
    return pc.greater(column(events, "timestamp", TIME), since).to_numpy(zero_copy_only=False)
