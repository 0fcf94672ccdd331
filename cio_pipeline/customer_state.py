"""A customer's acknowledged attributes, packed: for each time that any was set at, its 4 bytes, then 11 bytes an attribute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

State = dict[bytes, "tuple[bytes, int]"]
"""Hash of an attribute's name to the hash of its value and its time in Unix seconds."""

CUSTOMER, NAME, VALUE = 12, 5, 6
"""Bytes of the hashes. Of a hundred million customers, two share a hash once in 10^13 ledgers; of 300 names, once in 10^7;
a changed value passes for unchanged once in 10^14 times."""

TIME, COUNT = 4, 2
HEAD, RECORD = TIME + COUNT, NAME + VALUE


CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
ULID, ULID_BYTES, DIGIT_BITS, HALF = 26, 16, 5, 13
PLACES = np.uint64(1) << np.arange(DIGIT_BITS * (HALF - 1), -1, -DIGIT_BITS, dtype=np.uint64)
"""What each of a number's last 13 digits counts."""

DIGITS = np.zeros(256, dtype=np.uint8)
DIGITS[np.frombuffer(CROCKFORD.encode(), dtype=np.uint8)] = np.arange(len(CROCKFORD), dtype=np.uint8)


def pack_ids(ulids: list[str]) -> Any:
    """The 128 bits of each ULID: a numpy array of 16-byte strings, in the order given."""
    return pack_joined(np.frombuffer("".join(ulids).encode(), dtype=np.uint8))


def pack_joined(ulids: Any) -> Any:
    """As `pack_ids`; the ULIDs are given as their characters, one after another (numpy, bytes)."""
    digits = DIGITS[ulids].reshape(-1, ULID).astype(np.uint64)
    first = digits[:, :HALF] @ PLACES * np.uint64(2) + (digits[:, HALF] >> np.uint64(DIGIT_BITS - 1))
    last = digits[:, HALF:] @ PLACES  # of the digit in the middle, all bits but the lowest four pass 64 bits and are lost
    return np.stack([first, last], axis=1).astype(">u8").view(f"S{ULID_BYTES}").ravel()


def id_halves(packed: Any) -> tuple[Any, Any]:
    """The first and the last 64 bits of ids that `pack_ids` packed, as numbers, which are quicker to sort and to compare."""
    halves = np.ascontiguousarray(packed).view(">u8").reshape(len(packed), 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


@lru_cache(1 << 15)
def customer_id(key: str) -> bytes:
    """What stands for a customer's key in the ledger."""
    return blake2b(key.encode(), digest_size=16).digest()[:CUSTOMER]


def name_hash(name: str) -> bytes:
    """What stands for an attribute's name."""
    return blake2b(name.encode(), digest_size=NAME).digest()


def value_hash(value: bytes) -> bytes:
    """What stands for an attribute's value, given as JSON."""
    return blake2b(value, digest_size=7).digest()[:VALUE]


def state_time(seconds: int) -> int:
    """The time as the ledger keeps it: before 1970 or after 2106 it is the nearest that four bytes hold."""
    return min(max(seconds, 0), 2**32 - 1)


def merge(stored: State, newer: State) -> State:
    """R17: each attribute as it was last set; at the same time, as `newer` says."""
    merged = dict(stored)
    merged.update({name: entry for name, entry in newer.items() if name not in stored or entry[1] >= stored[name][1]})
    return merged


def is_superseded(refused: State, stored: State) -> bool:
    """Whether each attribute of an upsert that was refused has been set since, at its own time or later."""
    return all(name in stored and stored[name][1] >= time for name, (_, time) in refused.items())


def pack(state: State) -> bytes:
    """The state's bytes."""
    by_time: dict[int, list[bytes]] = defaultdict(list)
    for name, (value, time) in state.items():
        by_time[time].append(name + value)
    return pack_records(by_time)


def pack_records(by_time: Mapping[int, list[bytes]]) -> bytes:
    """The bytes of a state, given by time as its records: the hash of a name and the hash of its value."""
    heads = {time: time.to_bytes(TIME, "big") + len(records).to_bytes(COUNT, "big") for time, records in by_time.items()}
    return b"".join([heads[time] + b"".join(records) for time, records in by_time.items()])


def unpack(packed: bytes) -> State:
    """The state of `pack`'s bytes."""
    state: State = {}
    start = 0
    while start < len(packed):
        time = int.from_bytes(packed[start : start + TIME], "big")
        end = start + HEAD + RECORD * int.from_bytes(packed[start + TIME : start + HEAD], "big")
        for at in range(start + HEAD, end, RECORD):
            state[packed[at : at + NAME]] = (packed[at + NAME : at + RECORD], time)
        start = end
    return state
