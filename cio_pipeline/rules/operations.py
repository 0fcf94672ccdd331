"""From the events to send to Customer.io's operations (R7, R12 to R14), and what is left out and why.

An operation is the JSON of one item of `/api/v2/batch`, or the body of the v1 event call for an event that is too large for
that. A delivery sends it as it is, but for some upserts: `customerio/plan.py` begins with what may change.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from cio_pipeline.rules.attributes import WhyLeftOut, attributes_of, name_rule
from cio_pipeline.rules.columns import (
    MICROSECONDS_PER_SECOND,
    Factorized,
    Integers,
    as_text,
    factorize,
    microseconds,
    text_array,
    texts,
    utf8,
)
from cio_pipeline.rules.customers import Attributes, customers_of
from cio_pipeline.rules.event_data import Findings, read_event_data
from cio_pipeline.rules.event_ids import ulids
from cio_pipeline.rules.items import Items, event_items, event_type
from cio_pipeline.rules.options import Options

TEXT = pa.large_string()
EVENTS = pa.schema(
    [
        *((name, TEXT) for name in ("uuid", "ulid", "key", "distinct_id", "name", "type")),
        ("timestamp", pa.timestamp("us", "UTC")),
        *((name, TEXT) for name in ("call", "operation")),
        ("personless", pa.bool_()),
    ]
)
REJECTS = pa.schema(
    [
        *((name, TEXT) for name in ("uuid", "distinct_id", "event")),
        ("timestamp", pa.timestamp("us", "UTC")),
        *((name, TEXT) for name in ("what", "name", "reason")),
    ]
)

CHUNK = 20_000
"""The number of events that are processed at once, since their JSON is then in memory several times."""


class DerivedTables(NamedTuple):
    """What will be sent, and what will not."""

    customers: pa.Table
    """key; part (0; 1 and more if a customer needs more than 32,000 bytes); attributes (how many); timestamp (the newest);
    operation; state (the attributes as the ledger keeps them: `attribute_state.pack`); identifier; email (or null); consent
    (whether any of the attributes is about consent, R19)."""
    events: pa.Table
    """By time: uuid; ulid; key; distinct_id (as in PostHog, even if the event is stitched); name; type; timestamp; call
    (`batch` or `event`); operation; personless (R5)."""
    rejects: pa.Table
    """uuid; distinct_id; event; timestamp; what (`event`, `attribute` or `data`); name (of the attribute or property);
    reason."""
    emails_in_another_case: int
    """How many of the customers' attributes are named `email` in another case, and so are not the email (R1)."""


Reject = tuple[int, str, str, str]
"""An event's row number; what, name and reason of the rejects table."""


def derived_tables(to_send: pd.DataFrame, options: Options) -> DerivedTables:
    """Returns the tables of the events to send, whose outcome is `sent`. They are all that their customers have, sorted by
    `facts.ORDER`."""
    why_left_out = name_rule(options)
    are_sent = np.ones(len(to_send), dtype=bool)
    events: list[pa.Table] = [EVENTS.empty_table()]
    given: dict[str, Attributes] = {}
    rejects: list[Reject] = []
    for start in range(0, len(to_send), CHUNK):
        chunk = _chunk(to_send.iloc[start : start + CHUNK], why_left_out, options)
        events.append(chunk.events)
        are_sent[[start + row for row in chunk.refused]] = False
        left_out = [*_refused_events(chunk), *_collect_attributes(chunk, given, why_left_out, options)]
        rejects += [(start + row, what, name, reason) for row, what, name, reason in left_out]
    customers = customers_of(
        to_send[["key", "identifier", "timestamp", "email", "email_set_at"]].iloc[np.flatnonzero(are_sent)], given
    )
    rejects.sort(key=itemgetter(0))
    if customers.beyond:
        last = {key: number for number, key in enumerate(texts(to_send["key"]))}
        beyond = ((last[key], left_out) for key, left_out in customers.beyond.items())
        rejects += [(row, "attribute", name, reason) for row, left_out in beyond for name, reason in left_out]
    tables = (customers.table, pa.concat_tables(events), _rejects(to_send, rejects))
    return DerivedTables(*tables, customers.emails_in_another_case)


class _Chunk(NamedTuple):
    """Some of the events to send."""

    keys: Factorized
    names: Factorized
    times: Integers
    """In microseconds."""
    findings: dict[int, Findings]
    """The parts of their JSON that are not their data, by row."""
    refused: dict[int, str]
    """Why an event cannot be sent, by row."""
    events: pa.Table
    """The events table of those that can."""


def _chunk(to_send: pd.DataFrame, why_left_out: WhyLeftOut, options: Options) -> _Chunk:
    keys, names, times = factorize(to_send["key"]), factorize(to_send["event"]), microseconds(to_send["timestamp"])
    properties, persons = utf8(to_send["properties"]), utf8(to_send["person_properties"])
    canonical, sent_as_is = to_send["canonical"].to_numpy(bool), to_send["sent_as_is"].to_numpy(bool)
    data = read_event_data(properties, persons, canonical, sent_as_is, why_left_out, options)
    ids = ulids(times, names, utf8(to_send["distinct_id"]), utf8(to_send["uuid"]))
    items = event_items(keys, names, ids, times // MICROSECONDS_PER_SECOND, data.json)
    return _Chunk(keys, names, times, data.findings, data.refused | items.refused, _events(to_send, names, ids, items))


def _refused_events(chunk: _Chunk) -> Iterator[Reject]:
    for row, reason in chunk.refused.items():
        yield row, "event", chunk.names.at(row), reason


def _collect_attributes(
    chunk: _Chunk, given: dict[str, Attributes], why_left_out: WhyLeftOut, options: Options
) -> Iterator[Reject]:
    """Adds the attributes that the chunk's events give to those of their customers, by key. Yields what is left out."""
    for row, findings in chunk.findings.items():
        if row in chunk.refused:
            continue
        attributes, left_out = attributes_of(findings.given, findings.unset, why_left_out, options)
        given.setdefault(chunk.keys.at(row), Attributes({}, {})).update(attributes, int(chunk.times[row]))
        for name, reason in findings.attributes_left_out + left_out:
            yield row, "attribute", name, reason
        for name, reason in findings.data_left_out:
            yield row, "data", name, reason


def _events(to_send: pd.DataFrame, names: Factorized, ids: pa.LargeBinaryArray, items: Items) -> pa.Table:
    """Returns the events table: the events that have an operation."""
    columns = {
        **{name: text_array(to_send[name]) for name in ("uuid", "key", "distinct_id")},
        "ulid": as_text(ids),
        "name": as_text(names.map(lambda name: name.strip().encode())),
        "type": as_text(names.map(lambda name: event_type(name).encode())),
        "timestamp": pa.array(microseconds(to_send["timestamp"])).cast(EVENTS.field("timestamp").type),
        "call": items.calls,
        "operation": as_text(items.operations),
        "personless": pa.array(to_send["personless"].to_numpy(bool)),
    }
    rows = pa.table([columns[name] for name in EVENTS.names], schema=EVENTS)
    return rows.filter(items.operations.is_valid()) if items.operations.null_count else rows


def _rejects(to_send: pd.DataFrame, rejects: list[Reject]) -> pa.Table:
    """Returns the rejects table: each reject with the columns that identify its event."""
    events = to_send[["uuid", "distinct_id", "event", "timestamp"]].take([row for row, *_ in rejects])
    columns = {name: [reject[at] for reject in rejects] for at, name in enumerate(("what", "name", "reason"), start=1)}
    return pa.Table.from_pandas(events.assign(**columns), REJECTS, preserve_index=False)
