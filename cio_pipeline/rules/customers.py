"""R7, R10 and R17: a day's customers, as its events fill them, and the upserts that they come to."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import orjson
import pandas as pd
import pyarrow as pa

from cio_pipeline.customer_state import name_hash, pack_records, state_time, value_hash
from cio_pipeline.json_text import write
from cio_pipeline.rules.attributes import LeftOut, limit_attributes
from cio_pipeline.rules.columns import MICROSECONDS_PER_SECOND, Factorized, factorize, microseconds, texts
from cio_pipeline.rules.consent import is_consent
from cio_pipeline.rules.items import upsert
from cio_pipeline.rules.limits import MAX_ITEM_BYTES

ANY_CASE = re.compile("email", re.IGNORECASE)
MAX_ATTRIBUTES_BYTES = MAX_ITEM_BYTES - 500
"""What the rest of an upsert leaves for its attributes."""

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


class Attributes(NamedTuple):
    """Attributes of a customer: name to value, and name to the time it was set (microseconds)."""

    values: dict[str, Any]
    times: dict[str, int]

    def set(self, values: dict[str, Any], time: int) -> None:
        """R7: the last value by time wins; events come in time order."""
        self.values.update(values)
        self.times.update(dict.fromkeys(values, time))


class _Name(NamedTuple):
    """Of an attribute's name: its JSON with a colon, the ledger's hash of it, whether it is about consent (R19), and whether
    it is `email` in another case, which is no email (R1)."""

    member: bytes
    hash: bytes
    is_consent: bool
    is_email_in_another_case: bool


class Customers(NamedTuple):
    """The customers table; by customer's key, what is beyond R10's 300 attributes; and how many attributes are named `email` in
    another case."""

    table: pa.Table
    beyond: dict[str, LeftOut]
    emails_in_another_case: int


def customers_of(events: pd.DataFrame, given: dict[str, Attributes]) -> Customers:
    """The customers of the events that are sent, by time (their key, identifier, timestamp, email and email_set count); `given`
    are the attributes that these give them, by key."""
    rows: list[tuple[Any, ...]] = []
    beyond: dict[str, LeftOut] = {}
    names = cache(_name)
    in_another_case = 0
    for key, own in _own(events):
        whole = _with(own, given[key]) if key in given else own
        attributes, left_out = limit_attributes(whole.values)
        if left_out:
            beyond[key] = left_out
        for part, members in enumerate(_parts(attributes, names)):
            rows.append(_row(key, part, members, whole))
            in_another_case += sum(name.is_email_in_another_case for _, name, _ in members)
    columns = list(zip(*rows, strict=True)) or [()] * len(CUSTOMERS)
    return Customers(pa.table(dict(zip(CUSTOMERS.names, columns, strict=True)), schema=CUSTOMERS), beyond, in_another_case)


def _name(name: str) -> _Name:
    is_email = name != "email" and ANY_CASE.fullmatch(name) is not None
    return _Name(orjson.dumps(name) + b":", name_hash(name), is_consent(name), is_email)


Member = tuple[str, _Name, bytes]
"""An attribute: its name, what that is, and its value as JSON."""


def _own(events: pd.DataFrame) -> Iterator[tuple[str, Attributes]]:
    """R7: the customers' keys, as they first appear, with the attributes that each has of itself.

    `identifier` is the distinct_id of the last event. `email` is the key; or else the email that was set last, as of when it
    was set: an event that only carries it along must not pass for a newer one (R17). It counts as set no later than the event:
    one that R16 sends may be older than the email it brings, which its person had at the merge.
    """
    keys, times = factorize(events["key"]), microseconds(events["timestamp"])
    last = _last_rows(keys, np.arange(len(events)))
    with_email = np.flatnonzero(events["email"].notna().to_numpy(bool))
    set_at = times.copy()
    set_at[with_email] = np.minimum(times[with_email], events["email_set"].to_numpy(np.int64)[with_email])
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
            own.set({"email": key.removeprefix("email:")}, time)
        elif has_email:
            own.set({"email": email}, email_time)
        yield key, own


def _with(own: Attributes, given: Attributes) -> Attributes:
    """R7: what a customer has of itself, then what it was given. Its own `email`, if any, takes a given one's place."""
    return Attributes({**own.values, **given.values, **own.values}, {**own.times, **given.times, **own.times})


def _last_rows(keys: Factorized, rows: Any) -> Any:
    """The last of these rows that each key has, by the keys' numbers; -1 where it has none."""
    last = np.full(len(keys.uniques), -1)
    last[keys.codes[rows]] = rows
    return last


def _row(key: str, part: int, members: list[Member], whole: Attributes) -> tuple[Any, ...]:
    """A row of the customers table, as `CUSTOMERS` says: these attributes of the whole."""
    records: dict[int, list[bytes]] = {}
    newest = max(whole.times[name] for name, _, _ in members)
    for name, known, value in members:
        records.setdefault(state_time(whole.times[name] // MICROSECONDS_PER_SECOND), []).append(known.hash + value_hash(value))
    operation = upsert(key, newest // MICROSECONDS_PER_SECOND, [known.member + value for _, known, value in members])
    whose = (whole.values["identifier"], whole.values.get("email"))
    consent = any(known.is_consent for _, known, _ in members)
    return (key, part, len(members), newest, operation, pack_records(records), *whose, consent)


def _parts(attributes: dict[str, Any], names: Callable[[str], _Name]) -> list[list[Member]]:
    """The attributes, in one part, or as many as it takes for each upsert to stay within 32,000 bytes."""
    parts: list[list[Member]] = [[]]
    size = 0
    for name, value in attributes.items():
        known, text = names(name), write(value)
        bytes_of_member = len(known.member) + len(text) + 1
        size += bytes_of_member
        if size > MAX_ATTRIBUTES_BYTES and parts[-1]:
            parts.append([])
            size = bytes_of_member
        parts[-1].append((name, known, text))
    return parts
