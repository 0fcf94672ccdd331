"""The JSON of Customer.io's operations: an item of `/api/v2/batch`, or the body of the v1 event call (R12: events; R14: sizes).

An upsert, an event, and an event's body for the v1 call:

    {"type":"person","action":"identify","identifiers":{"id":"u1"},"timestamp":1772445600,"attributes":{"plan":"pro"}}
    {"type":"person","action":"event","identifiers":{"id":"u1"},"id":"01KJ…","name":"paid","timestamp":1772445600,"attributes":{}}
    {"id":"01KJ…","name":"paid","timestamp":1772445600,"type":"event","data":{}}

The `attributes` of an event are its data; only those of an upsert are the person's. The client wraps items in `{"batch":[…]}`.
JSON that many events have in common is written once; Arrow joins it with the rest.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.rules.columns import Factorized, Integers
from cio_pipeline.rules.limits import MAX_DATA_BYTES, MAX_ITEM_BYTES

PLAIN_EMAIL = re.compile(r'[^\s"@]+@[^\s"@]+')

BATCH_CALL, V1_CALL = "batch", "event"
"""How an operation is sent, in a batch or by the v1 event call, as the tables `events` and `refusals` store it."""

TYPES = {"$pageview": "page", "$screen": "screen"}
DATA_IS_LARGE = f"data is over {MAX_DATA_BYTES} bytes (R14)"
NO_PATH = f"item is over {MAX_ITEM_BYTES} bytes, and the v1 call's URL cannot name its customer (R14)"


def identifiers(key: str) -> dict[str, str]:
    """Customer.io's identifiers of a key: `id:u1` is {"id": "u1"}."""
    kind, _, value = key.partition(":")
    return {kind: value}


def event_type(name: str) -> str:
    """R12: Customer.io's type of an event with this name: `page`, `screen` or `event`."""
    return TYPES.get(name, "event")


class Items(NamedTuple):
    """Events' operations: their calls (`batch` or `event`) and their JSON in UTF-8, null where one is refused; and, by row, the
    reason for that."""

    calls: pa.LargeStringArray
    operations: pa.LargeBinaryArray
    refused: dict[int, str]


def event_items(
    keys: Factorized, names: Factorized, ids: pa.LargeBinaryArray, seconds: Integers, data: pa.LargeBinaryArray
) -> Items:
    """Returns the events' operations.

    ids: as `event_ids.ulids` returns them; seconds: the events' times (Unix seconds); data: JSON in UTF-8, null for an
    event that gets no operation.
    """
    joined = [
        names.map(_opening),
        keys.map(lambda key: orjson.dumps(identifiers(key)) + b',"id":"'),
        ids,
        names.map(_name_member),
        pa.array(seconds).cast(pa.large_string()).cast(pa.large_binary()),
        pa.scalar(b',"attributes":', pa.large_binary()),
        data,
        pa.scalar(b"}", pa.large_binary()),
    ]
    operations = pc.binary_join_element_wise(*joined, pa.scalar(b"", pa.large_binary()))
    is_large = pc.greater(pc.binary_length(operations), MAX_ITEM_BYTES).fill_null(False).to_numpy(zero_copy_only=False)
    refused: dict[int, str] = {}
    by_v1: list[bytes | None] = []
    for row in np.flatnonzero(is_large).tolist():
        key, name, content = keys.at(row), names.at(row), data[row].as_py()
        if len(content) > MAX_DATA_BYTES:
            refused[row] = DATA_IS_LARGE
        elif not _fits_in_a_path(key):
            refused[row] = NO_PATH
        event = {"id": ids[row].as_py().decode(), "name": name.strip(), "timestamp": int(seconds[row])}
        body = orjson.dumps({**event, "type": event_type(name), "data": orjson.Fragment(content)})
        by_v1.append(None if row in refused else body)
    if by_v1:
        operations = pc.replace_with_mask(operations, pa.array(is_large), pa.array(by_v1, pa.large_binary()))
    calls = pa.array([BATCH_CALL, V1_CALL], pa.large_string()).take(pa.array(is_large.astype(np.int8)))
    return Items(calls, operations, refused)


def upsert(key: str, seconds: int, attributes: list[bytes]) -> bytes:
    """R17: the item of an upsert, with the time of its newest attribute. `attributes` are members of a JSON object."""
    whose = orjson.dumps(identifiers(key))
    before = b'{"type":"person","action":"identify","identifiers":' + whose + b',"timestamp":%d,"attributes":{' % seconds
    return before + b",".join(attributes) + b"}}"


def _opening(name: str) -> bytes:
    """Returns an event's item up to its identifiers."""
    return b'{"type":"person","action":"%b","identifiers":' % event_type(name).encode()


def _name_member(name: str) -> bytes:
    """Returns the part of an event's item between its id and its time."""
    return b'","name":%b,"timestamp":' % orjson.dumps(name.strip())


def _fits_in_a_path(key: str) -> bool:
    """Returns whether the v1 call's path can name the customer: Customer.io tells an id, an email and its own ids, with `cio_`,
    apart by what they look like (OpenAPI), and HTTP clients resolve dots (RFC 3986)."""
    kind, _, value = key.partition(":")
    if value in (".", "..") or value.startswith("cio_"):
        return False
    return PLAIN_EMAIL.fullmatch(value) is not None if kind == "email" else "@" not in value
