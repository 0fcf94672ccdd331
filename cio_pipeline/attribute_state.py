"""The attributes of a customer that Customer.io has acknowledged, as the ledger stores them: hashes and times, packed.

A packed state is, for each time at which any attribute was set: 4 bytes of the time (Unix seconds), 2 bytes of the number of
attributes, and 11 bytes for each of them (5 of the name's hash, 6 of the value's). All numbers are big-endian.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

State = dict[bytes, "tuple[bytes, int]"]
"""Hash of an attribute's name to the hash of its value and its time in Unix seconds."""

CUSTOMER_HASH_BYTES = 12
"""Two of a hundred million customers share a hash in one of 10^13 ledgers."""

NAME_HASH_BYTES = 5
"""Two of 300 attribute names share a hash in one of 10^7 ledgers."""

VALUE_HASH_BYTES = 6
"""A changed value is taken for unchanged once in 10^14 times."""

TIME_BYTES, COUNT_BYTES = 4, 2
HEAD_BYTES, RECORD_BYTES = TIME_BYTES + COUNT_BYTES, NAME_HASH_BYTES + VALUE_HASH_BYTES

# BLAKE2 gives another hash for each digest_size, so these stay as they are: existing ledgers hold hashes cut from them.
CUSTOMER_DIGEST_SIZE, VALUE_DIGEST_SIZE = 16, 7


NO_ATTRIBUTE = bytes(NAME_HASH_BYTES)
"""In place of the hash of a name: an entry that only says that an upsert of its time may have reached Customer.io."""


@lru_cache(1 << 15)
def customer_id(key: str) -> bytes:
    """Returns the hash that the ledger stores in place of a customer's key."""
    return blake2b(key.encode(), digest_size=CUSTOMER_DIGEST_SIZE).digest()[:CUSTOMER_HASH_BYTES]


def upsert_id(key: str, part: int) -> str:
    """Returns the item id of a customer's upsert in the ledger's refusals: the hash of the key, and the upsert's part."""
    return f"{customer_id(key).hex()}#{part}"


def name_hash(name: str) -> bytes:
    """Returns the hash that a state holds in place of an attribute's name."""
    return blake2b(name.encode(), digest_size=NAME_HASH_BYTES).digest()


def value_hash(value: bytes) -> bytes:
    """Returns the hash that a state holds in place of an attribute's value, which is given as JSON."""
    return blake2b(value, digest_size=VALUE_DIGEST_SIZE).digest()[:VALUE_HASH_BYTES]


def state_time(seconds: int) -> int:
    """Returns the Unix time as four bytes can hold it: times before 1970 or after 2106 become the nearest one."""
    return min(max(seconds, 0), 2**32 - 1)


def only_time(time: int) -> State:
    """Returns a state without attributes, from which it follows that an upsert of this time may have reached Customer.io."""
    return {NO_ATTRIBUTE: (bytes(VALUE_HASH_BYTES), time)}


def latest_time(state: State) -> int:
    """Returns the latest time in a state, or 0."""
    return max((time for _, time in state.values()), default=0)


def merge(stored: State, newer: State) -> State:
    """Returns each attribute as it was last set (R17: the later value wins); if both times are equal, as in `newer`."""
    merged = dict(stored)
    merged.update({name: entry for name, entry in newer.items() if name not in stored or entry[1] >= stored[name][1]})
    return merged


def is_superseded(refused: State, stored: State) -> bool:
    """Returns whether every attribute of a refused upsert has since been set at the same time or later."""
    return all(name in stored and stored[name][1] >= time for name, (_, time) in refused.items())


def pack(state: State) -> bytes:
    """Returns the state in its packed form."""
    by_time: dict[int, list[bytes]] = defaultdict(list)
    for name, (value, time) in state.items():
        by_time[time].append(name + value)
    return pack_records(by_time)


def pack_records(by_time: Mapping[int, list[bytes]]) -> bytes:
    """Returns a packed state; `by_time` maps a Unix time to records, each the hash of a name followed by that of its value."""
    heads = {
        time: time.to_bytes(TIME_BYTES, "big") + len(records).to_bytes(COUNT_BYTES, "big") for time, records in by_time.items()
    }
    return b"".join([heads[time] + b"".join(records) for time, records in by_time.items()])


def unpack(packed: bytes) -> State:
    """Returns the state that `pack` packed."""
    state: State = {}
    start = 0
    while start < len(packed):
        time = int.from_bytes(packed[start : start + TIME_BYTES], "big")
        records = int.from_bytes(packed[start + TIME_BYTES : start + HEAD_BYTES], "big")
        end = start + HEAD_BYTES + RECORD_BYTES * records
        for at in range(start + HEAD_BYTES, end, RECORD_BYTES):
            state[packed[at : at + NAME_HASH_BYTES]] = (packed[at + NAME_HASH_BYTES : at + RECORD_BYTES], time)
        start = end
    return state
