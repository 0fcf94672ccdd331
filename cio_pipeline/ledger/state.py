"""A customer's acknowledged attributes, packed: 5 bytes of the name's hash, 7 of the value's, 4 of the time, each."""

from __future__ import annotations

from hashlib import blake2b

State = dict[bytes, "tuple[bytes, int]"]
"""Hash of an attribute's name to the hash of its value and its time in Unix seconds."""

NAME, VALUE, TIME = 5, 7, 4
RECORD = NAME + VALUE + TIME


def customer_id(key: str) -> bytes:
    """What stands for a customer's key in the ledger."""
    return blake2b(key.encode(), digest_size=16).digest()


def name_hash(name: str) -> bytes:
    """What stands for an attribute's name."""
    return blake2b(name.encode(), digest_size=NAME).digest()


def value_hash(value: bytes) -> bytes:
    """What stands for an attribute's value, given as JSON."""
    return blake2b(value, digest_size=VALUE).digest()


def state_time(seconds: int) -> int:
    """The time as the ledger keeps it: before 1970 or after 2106 it is the nearest that four bytes hold."""
    return min(max(seconds, 0), 2**32 - 1)


def merge(standing: State, newer: State) -> State:
    """R17: each attribute as it was last set; at the same time, as `newer` says."""
    merged = dict(standing)
    merged.update({name: entry for name, entry in newer.items() if name not in standing or entry[1] >= standing[name][1]})
    return merged


def pack(state: State) -> bytes:
    """The state's bytes."""
    return b"".join(name + value + time.to_bytes(TIME, "big") for name, (value, time) in state.items())


def unpack(packed: bytes) -> State:
    """The state of `pack`'s bytes."""
    records = (packed[start : start + RECORD] for start in range(0, len(packed), RECORD))
    return {record[:NAME]: (record[NAME : NAME + VALUE], int.from_bytes(record[NAME + VALUE :], "big")) for record in records}
