"""A customer's acknowledged attributes in few bytes: for each time at which any was set, 4 bytes and a count, then 11 bytes
each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

State = dict[bytes, "tuple[bytes, int]"]
"""By the hash of an attribute's name: the hash of its value, and its time in Unix seconds."""

CUSTOMER, NAME, VALUE = 12, 5, 6
"""The sizes of the hashes in bytes. Of a hundred million customers, two have the same hash in one of 10^13 ledgers; of 300
names, in one of 10^7; and one of 10^14 changed values counts as unchanged."""

TIME, COUNT = 4, 2
HEAD, RECORD = TIME + COUNT, NAME + VALUE


CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ULID, ULID_BYTES, DIGIT_BITS, HALF = 26, 16, 5, 13
PLACES = np.uint64(1) << np.arange(DIGIT_BITS * (HALF - 1), -1, -DIGIT_BITS, dtype=np.uint64)
"""The value of each of a number's last 13 digits."""

DIGITS = np.zeros(256, dtype=np.uint8)
DIGITS[np.frombuffer(CROCKFORD.encode(), dtype=np.uint8)] = np.arange(len(CROCKFORD), dtype=np.uint8)


def pack_ids(ulids: list[str]) -> Any:
    """The 128 bits of each ULID: a numpy array of 16-byte strings, in the same order."""
    return pack_joined(np.frombuffer("".join(ulids).encode(), dtype=np.uint8))


def pack_joined(ulids: Any) -> Any:
    """Like `pack_ids`, for ULIDs given as their joined characters (numpy, bytes)."""
    digits = DIGITS[ulids].reshape(-1, ULID).astype(np.uint64)
    first = digits[:, :HALF] @ PLACES * np.uint64(2) + (digits[:, HALF] >> np.uint64(DIGIT_BITS - 1))
    last = digits[:, HALF:] @ PLACES  # all bits of the middle digit except the lowest four exceed 64 bits, and are lost
    return np.stack([first, last], axis=1).astype(">u8").view(f"S{ULID_BYTES}").ravel()


def id_halves(packed: Any) -> tuple[Any, Any]:
    """The first and the last 64 bits of packed ids, as numbers, which are faster to sort and to compare."""
    halves = np.ascontiguousarray(packed).view(">u8").reshape(len(packed), 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


@lru_cache(1 << 15)
def customer_id(key: str) -> bytes:
    """The hash of a customer's key in the ledger."""
    return blake2b(key.encode(), digest_size=16).digest()[:CUSTOMER]


def name_hash(name: str) -> bytes:
    """The hash of an attribute's name."""
    return blake2b(name.encode(), digest_size=NAME).digest()


def value_hash(value: bytes) -> bytes:
    """The hash of an attribute's value, given as JSON."""
    return blake2b(value, digest_size=7).digest()[:VALUE]


def state_time(seconds: int) -> int:
    """The time as the ledger stores it: before 1970 or after 2106 it is the nearest one that fits in four bytes."""
    return min(max(seconds, 0), 2**32 - 1)


def merge(stored: State, newer: State) -> State:
    """R17: each attribute as it was set last; if both have the same time, as in `newer`."""
    merged = dict(stored)
    merged.update({name: entry for name, entry in newer.items() if name not in stored or entry[1] >= stored[name][1]})
    return merged


def is_superseded(refused: State, stored: State) -> bool:
    """Whether all attributes of a refused upsert have been set since, at the same time or later."""
    return all(name in stored and stored[name][1] >= time for name, (_, time) in refused.items())


def pack(state: State) -> bytes:
    """The state as bytes."""
    by_time: dict[int, list[bytes]] = defaultdict(list)
    for name, (value, time) in state.items():
        by_time[time].append(name + value)
    return pack_records(by_time)


def pack_records(by_time: Mapping[int, list[bytes]]) -> bytes:
    """The state as bytes, from its records by time: each is the hash of a name and the hash of its value."""
    heads = {time: time.to_bytes(TIME, "big") + len(records).to_bytes(COUNT, "big") for time, records in by_time.items()}
    return b"".join([heads[time] + b"".join(records) for time, records in by_time.items()])


def unpack(packed: bytes) -> State:
    """The state from the bytes of `pack`, or of several, joined."""
    state: State = {}
    start = 0
    while start < len(packed):
        time = int.from_bytes(packed[start : start + TIME], "big")
        end = start + HEAD + RECORD * int.from_bytes(packed[start + TIME : start + HEAD], "big")
        for at in range(start + HEAD, end, RECORD):
            state[packed[at : at + NAME]] = (packed[at + NAME : at + RECORD], time)
        start = end
    return state
