"""R7, R10 and R17: a day's customers, with the attributes that its events give them, and their upserts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from cio_pipeline.attribute_state import name_hash, pack_records, state_time, value_hash
from cio_pipeline.json_text import write
from cio_pipeline.rules.attributes import LeftOut, limit_attributes
from cio_pipeline.rules.columns import MICROSECONDS_PER_SECOND, Factorized, Integers, factorize, microseconds, texts
from cio_pipeline.rules.consent import is_consent
from cio_pipeline.rules.items import upsert
from cio_pipeline.rules.limits import MAX_ITEM_BYTES

EMAIL_IN_ANY_CASE = re.compile("email", re.IGNORECASE)
MAX_ATTRIBUTES_BYTES = MAX_ITEM_BYTES - 500
"""The most bytes that an upsert's attributes may have, if the rest of it needs no more than 500."""

SHORT_KEY = 60
"""A key of so many characters takes at most 360 bytes as JSON, six for each, so that the rest of the upsert fits in 500."""

CUSTOMERS = pa.schema(
    [
        ("key", pa.large_string()),
        ("part", pa.int32()),
        ("attributes", pa.int32()),  # how many there are in the operation
        ("timestamp", pa.timestamp("us", "UTC")),
        ("operation", pa.large_string()),
        ("state", pa.large_binary()),
        ("identifier", pa.large_string()),
        ("email", pa.large_string()),
        ("consent", pa.bool_()),
    ]
)


@dataclass
class Attributes:
    """A customer's attributes: their values, and when each was set (microseconds since 1970), by name."""

    values: dict[str, Any]
    times: dict[str, int]

    def update(self, values: dict[str, Any], time: int) -> None:
        """R7: the last value by time wins. To be called in the order of the events."""
        self.values.update(values)
        self.times.update(dict.fromkeys(values, time))


class _AboutName(NamedTuple):
    """About an attribute's name: its JSON with a colon, the ledger's hash of it, whether it is about consent (R19), and whether
    it is `email` in another case, which is not the email (R1)."""

    json: bytes
    hash: bytes
    is_consent: bool
    is_email_in_another_case: bool


class Customers(NamedTuple):
    """The customers table; by customer's key, the attributes beyond R10's 300; and how many attributes are named `email` in
    another case."""

    table: pa.Table
    beyond: dict[str, LeftOut]
    emails_in_another_case: int


def customers_of(events: pd.DataFrame, given: dict[str, Attributes]) -> Customers:
    """Returns the customers of these events.

    events: those that are sent, by time, with key, identifier, timestamp, email and email_set_at (`classify`); given: what
    their `$set` and `$unset` set and clear (R7, R11), by customer's key.
    """
    rows: list[tuple[Any, ...]] = []
    beyond: dict[str, LeftOut] = {}
    about = cache(_about_name)
    in_another_case = 0
    for key, own in _own_attributes(events):
        customer = _with_given(own, given[key]) if key in given else own
        attributes, left_out = limit_attributes(customer.values)
        if left_out:
            beyond[key] = left_out
        for part, members in enumerate(_parts(attributes, about, _attributes_bytes(key, customer))):
            rows.append(_row(key, part, members, customer))
            in_another_case += sum(its.is_email_in_another_case for _, its, _ in members)
    columns = list(zip(*rows, strict=True)) or [()] * len(CUSTOMERS)
    return Customers(pa.table(dict(zip(CUSTOMERS.names, columns, strict=True)), schema=CUSTOMERS), beyond, in_another_case)


def _about_name(name: str) -> _AboutName:
    is_email = name != "email" and EMAIL_IN_ANY_CASE.fullmatch(name) is not None
    return _AboutName(orjson.dumps(name) + b":", name_hash(name), is_consent(name), is_email)


Member = tuple[str, _AboutName, bytes]
"""An attribute: its name, what is known about that, and its value as JSON."""


def _own_attributes(events: pd.DataFrame) -> Iterator[tuple[str, Attributes]]:
    """R7: the customers' keys, in order of first appearance, each with the attributes that no event's JSON gives it.

    `identifier` is the distinct_id of the last event. `email` is the key's, or else the email that was set last, with the time
    at which it was set: that an event still has it does not make it newer (R17). That time is never later than the event's: a
    stitched event (R16) may be older than its person's email.
    """
    keys, times = factorize(events["key"]), microseconds(events["timestamp"])
    last = _last_rows(keys, np.arange(len(events)))
    with_email = np.flatnonzero(events["email"].notna().to_numpy(bool))
    set_at = times.copy()
    set_at[with_email] = np.minimum(times[with_email], events["email_set_at"].to_numpy(np.int64)[with_email])
    newest = _last_rows(keys, with_email[np.argsort(set_at[with_email], kind="stable")])
    columns = (
        keys.uniques,
        texts(events["identifier"].take(last)),
        times[last].tolist(),
        (newest >= 0).tolist(),
        texts(events["email"].take(newest)),
        set_at[newest].tolist(),
    )
    for key, identifier, time, has_email, email, email_time in zip(*columns, strict=True):
        own = Attributes({"identifier": identifier}, {"identifier": time})
        if key.startswith("email:"):
            own.update({"email": key.removeprefix("email:")}, time)
        elif has_email:
            own.update({"email": email}, email_time)
        yield key, own


def _with_given(own: Attributes, given: Attributes) -> Attributes:
    """R7: a customer's own attributes, then the given ones. Its own `email`, if any, replaces a given one.

    `own` comes first for the order of the names, and last for the values.
    """
    return Attributes({**own.values, **given.values, **own.values}, {**own.times, **given.times, **own.times})


def _last_rows(keys: Factorized, rows: Integers) -> Integers:
    """Returns the last of these rows of each key, in the order of `keys.uniques`; -1 where a key has none."""
    last = np.full(len(keys.uniques), -1)
    last[keys.codes[rows]] = rows
    return last


def _row(key: str, part: int, members: list[Member], customer: Attributes) -> tuple[Any, ...]:
    """Returns a row of `CUSTOMERS`: some of the customer's attributes."""
    records: dict[int, list[bytes]] = {}
    newest = max(customer.times[name] for name, _, _ in members)
    for name, its, value in members:
        time = state_time(customer.times[name] // MICROSECONDS_PER_SECOND)
        records.setdefault(time, []).append(its.hash + value_hash(value))
    operation = upsert(key, newest // MICROSECONDS_PER_SECOND, [its.json + value for _, its, value in members])
    identifier, email = customer.values["identifier"], customer.values.get("email")
    consent = any(its.is_consent for _, its, _ in members)
    return (key, part, len(members), newest, operation, pack_records(records), identifier, email, consent)


def _attributes_bytes(key: str, customer: Attributes) -> int:
    """Returns how many bytes the attributes of each of a customer's upserts may have, with a comma after each."""
    if len(key) <= SHORT_KEY:
        return MAX_ATTRIBUTES_BYTES
    rest = upsert(key, customer.times["identifier"] // MICROSECONDS_PER_SECOND, [])  # no attribute is newer
    return min(MAX_ATTRIBUTES_BYTES, MAX_ITEM_BYTES - len(rest) + 1)  # the last attribute has no comma


def _parts(attributes: dict[str, Any], about: Callable[[str], _AboutName], most_bytes: int) -> list[list[Member]]:
    """Returns the attributes in one part, or in as many as it takes for each to have no more than `most_bytes`."""
    parts: list[list[Member]] = [[]]
    size = 0
    for name, value in attributes.items():
        its, json = about(name), write(value)
        member_size = len(its.json) + len(json) + 1
        size += member_size
        if size > most_bytes and parts[-1]:
            parts.append([])
            size = member_size
        parts[-1].append((name, its, json))
    return parts
