"""R7, R10 and R17: a day's customers, as its events fill them, and the upserts that they come to."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import orjson
import pandas as pd
import pyarrow as pa

from cio_pipeline.customer_state import name_hash, pack, state_time, value_hash
from cio_pipeline.json_text import write
from cio_pipeline.rules.attributes import LeftOut, within_most
from cio_pipeline.rules.consent import is_consent
from cio_pipeline.rules.items import upsert
from cio_pipeline.rules.limits import ITEM_BYTES

SECOND = 1_000_000
ROOM = ITEM_BYTES - 500
"""What an upsert has for its attributes."""

CUSTOMERS = pa.schema(
    [
        ("key", pa.large_string()),
        ("part", pa.int32()),
        ("attributes", pa.int32()),
        ("timestamp", pa.timestamp("us", "UTC")),
        ("operation", pa.large_string()),
        ("state", pa.large_binary()),
        ("identifier", pa.large_string()),
        ("email", pa.large_string()),
        ("consent", pa.bool_()),
    ]
)


class Customer:
    """A customer as the day's events fill it: name to value, and name to the time it was set (microseconds)."""

    __slots__ = ("attributes", "times")

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}
        self.times: dict[str, int] = {}

    def set(self, attributes: dict[str, Any], time: int) -> None:
        """R7: the last value by time wins; events come in time order."""
        self.attributes.update(attributes)
        self.times.update(dict.fromkeys(attributes, time))

    def set_identifier(self, distinct_id: str, time: int) -> None:
        """R7: the distinct_id of the last event."""
        self.attributes["identifier"] = distinct_id
        self.times["identifier"] = time

    def set_email(self, email: str, set_at: int) -> None:
        """R7: an email as of when it was set; an event that only carries it along must not pass for a newer one (R17)."""
        if set_at >= self.times.get("email", set_at):
            self.attributes["email"] = email
            self.times["email"] = set_at


class _Name(NamedTuple):
    """Of an attribute's name: its JSON with a colon, what the ledger has for it, and whether it is about consent (R19)."""

    member: bytes
    hash: bytes
    is_consent: bool


def customers_frame(customers: dict[str, Customer]) -> tuple[pd.DataFrame, dict[str, LeftOut]]:
    """The customers table's rows, by customers' keys; and, by key, what is beyond R10's 300 attributes."""
    columns: dict[str, list[Any]] = {name: [] for name in CUSTOMERS.names}
    beyond: dict[str, LeftOut] = {}
    names = cache(lambda name: _Name(orjson.dumps(name) + b":", name_hash(name), is_consent(name)))
    for key, customer in customers.items():
        attributes, left_out = within_most(customer.attributes)
        if left_out:
            beyond[key] = left_out
        for number, values in enumerate(_parts(attributes, names)):
            row = _row(key, number, values, customer, names)
            for column, value in zip(columns.values(), row, strict=True):
                column.append(value)
    return pa.table(columns, schema=CUSTOMERS).to_pandas(), beyond


def _row(key: str, part: int, values: dict[str, bytes], customer: Customer, names: Callable[[str], _Name]) -> tuple[Any, ...]:
    named = [(names(name), value, customer.times[name]) for name, value in values.items()]
    newest = max(time for _, _, time in named)
    operation = upsert(key, newest // SECOND, [name.member + value for name, value, _ in named])
    state = {name.hash: (value_hash(value), state_time(time // SECOND)) for name, value, time in named}
    whose = (customer.attributes["identifier"], customer.attributes.get("email"))
    return (key, part, len(values), newest, operation, pack(state), *whose, any(name.is_consent for name, _, _ in named))


def _parts(attributes: dict[str, Any], names: Callable[[str], _Name]) -> list[dict[str, bytes]]:
    """The attributes' values as JSON, in one part, or as many as it takes for each upsert to stay within 32,000 bytes."""
    parts: list[dict[str, bytes]] = [{}]
    size = 0
    for name, value in attributes.items():
        text = write(value)
        bytes_of_member = len(names(name).member) + len(text) + 1
        size += bytes_of_member
        if size > ROOM and parts[-1]:
            parts.append({})
            size = bytes_of_member
        parts[-1][name] = text
    return parts
