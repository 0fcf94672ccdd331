"""The JSON of Customer.io's operations: an item of `/api/v2/batch`, or the body of the v1 event call (R12 to R14).

JSON that many items share is written once and joined to the rest.
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import orjson

from cio_pipeline.json_text import write
from cio_pipeline.rules.limits import DATA_BYTES, ITEM_BYTES
from cio_pipeline.rules.options import Options
from cio_pipeline.rules.reading import NOT_DATA

PLAIN_EMAIL = re.compile(r'[^\s"@]+@[^\s"@]+')

TYPES = {"$pageview": "page", "$screen": "screen"}
DELIVERY_OVERRIDES = frozenset({"recipient", "from_address", "reply_to"})


class Refused(Exception):
    """R14: this event cannot be sent; the message is the reason."""


def identifiers(key: str) -> dict[str, str]:
    """Customer.io's identifiers of a key: `id:u1` is {"id": "u1"}."""
    kind, _, value = key.partition(":")
    return {kind: value}


def event_type(name: str) -> str:
    """R12: what Customer.io calls an event of this name."""
    return TYPES.get(name, "event")


class EventItems:
    """Makes the items of events. It remembers what events of one name, or of one customer, or properties have in common."""

    def __init__(self, options: Options) -> None:
        self._allow_overrides = options.allow_delivery_overrides
        self._passing: set[str] = set()
        self._of_key = cache(lambda key: orjson.dumps(identifiers(key)) + b',"id":"')
        self._of_name = cache(_of_name)

    def item(self, key: str, name: str, event_id: bytes, seconds: int, data: bytes) -> tuple[str, bytes]:
        """The call (`batch` or `event`) and its JSON. Raises `Refused`."""
        if len(data) > DATA_BYTES:
            raise Refused(f"data is over {DATA_BYTES} bytes (R14)")
        before, after = self._of_name(name)
        parts = (before, self._of_key(key), event_id, after, b"%d" % seconds, b',"attributes":', data, b"}")
        item = b"".join(parts)
        if len(item) <= ITEM_BYTES:
            return "batch", item
        if not _can_stand_in_a_path(key):
            raise Refused(f"item is over {ITEM_BYTES} bytes and the v1 call's path would not name its customer (R14)")
        event = {"id": event_id.decode(), "name": name.strip(), "timestamp": seconds, "type": event_type(name)}
        return "event", orjson.dumps({**event, "data": orjson.Fragment(data)})

    def data(self, properties: dict[str, Any]) -> tuple[bytes, list[str]]:
        """The event's data as JSON, and the names that R13 leaves out. What is no data is taken out of `properties`."""
        overrides: list[str] = []
        if not self._passing.issuperset(properties):
            overrides = self._take_out(properties)
        return write(properties), overrides

    def _take_out(self, properties: dict[str, Any]) -> list[str]:
        overrides = []
        for name in [name for name in properties if name not in self._passing]:
            if name in NOT_DATA:
                del properties[name]
            elif name.lower() in DELIVERY_OVERRIDES and not self._allow_overrides:
                del properties[name]
                overrides.append(name)
            else:
                self._passing.add(name)
        return overrides


def upsert(key: str, seconds: int, attributes: list[bytes]) -> bytes:
    """R17: the item of an upsert, with the time of its newest attribute. `attributes` are members of a JSON object."""
    whose = orjson.dumps(identifiers(key))
    before = b'{"type":"person","action":"identify","identifiers":' + whose + b',"timestamp":%d,"attributes":{' % seconds
    return before + b",".join(attributes) + b"}}"


def _of_name(name: str) -> tuple[bytes, bytes]:
    """What stands in an event's item before the identifiers, and between its id and its time."""
    before = b'{"type":"person","action":"%b","identifiers":' % event_type(name).encode()
    return before, b'","name":%b,"timestamp":' % orjson.dumps(name.strip())


def _can_stand_in_a_path(key: str) -> bool:
    """The v1 call tells by the looks of what stands in its path whether that is an id, an email or, with `cio_`, Customer.io's
    own id (OpenAPI); and HTTP clients resolve dots (RFC 3986)."""
    kind, _, value = key.partition(":")
    if value in (".", "..") or value.startswith("cio_"):
        return False
    return PLAIN_EMAIL.fullmatch(value) is not None if kind == "email" else "@" not in value
