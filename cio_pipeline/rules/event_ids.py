"""R12: the ids of events in Customer.io."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.packed_ids import CROCKFORD, DIGIT_BITS, HALF_DIGITS, ULID_CHARACTERS
from cio_pipeline.rules.columns import Bytes, Factorized, Integers, offsets_and_data, to_list

DAY = 86_400_000_000
"""Microseconds."""

UUID_CHARACTERS, FIRST_12_DIGITS = 36, [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
HEX_VALUES = np.zeros(256, dtype=np.uint8)
HEX_VALUES[np.frombuffer(b"0123456789abcdef", dtype=np.uint8)] = np.arange(16, dtype=np.uint8)
HASH_BYTES = 10

CHARACTERS = np.frombuffer(CROCKFORD.encode(), dtype=np.uint8)
SHIFTS = np.arange(DIGIT_BITS * (HALF_DIGITS - 1), -1, -DIGIT_BITS, dtype=np.uint64)
"""The distance of each of a number's last 13 digits from its end, in bits."""

DIGIT = np.uint64((1 << DIGIT_BITS) - 1)


def ulids(
    times: Integers, names: Factorized, distinct_ids: pa.LargeBinaryArray, uuids: pa.LargeBinaryArray
) -> pa.LargeBinaryArray:
    """Returns the events' ids in Customer.io, which are ULIDs.

    `times` are microseconds since 1970; `distinct_ids` and `uuids` (valid ones, `is_uuid`) are in UTF-8. The first 48 bits of
    an id are the uuid's. The other 80 are the BLAKE2b hash of the text `<days since 1970> <uuid in lower case> <length of the
    name> <name><distinct_id>`; the length keeps different names and distinct_ids apart.
    """
    days = pa.array(times // DAY).cast(pa.large_string()).cast(pa.large_binary())
    # not ascii_lower: pyarrow 26 lower-cases the wrong bytes if an array's offsets do not begin at 0
    lower = pc.utf8_lower(uuids.view(pa.large_string())).view(pa.large_binary())
    counted = names.map(lambda name: f" {len(name)} {name}".encode())
    space, nothing = (pa.scalar(text, pa.large_binary()) for text in (b" ", b""))
    identities = to_list(pc.binary_join_element_wise(days, space, lower, counted, distinct_ids, nothing))
    hashes = b"".join([blake2b(identity, digest_size=HASH_BYTES).digest() for identity in identities])
    content = np.hstack([_first_48_bits(lower), np.frombuffer(hashes, dtype=np.uint8).reshape(-1, HASH_BYTES)])
    return pa.array(CHARACTERS.take(_digits(content)).view(f"S{ULID_CHARACTERS}").ravel(), pa.large_binary())


def _digits(content: Bytes) -> Bytes:
    """Returns the 26 digits of five bits each of 128-bit numbers, given as 16 bytes each. The first digit has only three
    bits."""
    first, last = content.view(">u8").astype(np.uint64).T
    digits = np.empty((len(content), ULID_CHARACTERS), dtype=np.uint8)
    for place, shift in enumerate(SHIFTS):
        digits[:, place] = first >> np.uint64(1) >> shift & DIGIT
        digits[:, HALF_DIGITS + place] = last >> shift & DIGIT
    digits[:, HALF_DIGITS] |= (first & np.uint64(1)).astype(np.uint8) << (DIGIT_BITS - 1)  # a digit of both halves
    return digits


def _first_48_bits(uuids: pa.LargeBinaryArray) -> Bytes:
    """Returns the first six bytes of uuids in lower case."""
    _, characters = offsets_and_data(uuids)
    digits = HEX_VALUES[characters.reshape(-1, UUID_CHARACTERS)[:, FIRST_12_DIGITS]]
    return digits[:, ::2] << np.uint8(4) | digits[:, 1::2]
