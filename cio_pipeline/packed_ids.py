"""ULIDs packed to their 128 bits, as the ledger keeps the ids of delivered events: 16 bytes instead of 26 characters."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""The alphabet of ULIDs (Crockford's base 32)."""

ULID_CHARACTERS, ULID_BYTES = 26, 16

DIGIT_BITS = 5
"""The bits of one character."""

HALF_DIGITS = 13
"""The characters in each half of a ULID."""

# What each of a half's 13 digits counts.
PLACES = np.uint64(1) << np.arange(DIGIT_BITS * (HALF_DIGITS - 1), -1, -DIGIT_BITS, dtype=np.uint64)

# The digit that each byte stands for.
DIGITS = np.zeros(256, dtype=np.uint8)
DIGITS[np.frombuffer(CROCKFORD.encode(), dtype=np.uint8)] = np.arange(len(CROCKFORD), dtype=np.uint8)


def pack_ids(ulids: list[str]) -> npt.NDArray[np.bytes_]:
    """Returns the 128 bits of each ULID as a 16-byte string, in the same order."""
    return pack_joined(np.frombuffer("".join(ulids).encode(), dtype=np.uint8))


def pack_joined(characters: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Does the same as `pack_ids` for ULIDs whose characters are joined in one array of bytes."""
    digits = DIGITS[characters].reshape(-1, ULID_CHARACTERS).astype(np.uint64)
    first = digits[:, :HALF_DIGITS] @ PLACES * np.uint64(2) + (digits[:, HALF_DIGITS] >> np.uint64(DIGIT_BITS - 1))
    last = digits[:, HALF_DIGITS:] @ PLACES  # the middle digit's top bit overflows 64 bits and is lost: `first` has it
    return np.stack([first, last], axis=1).astype(">u8").view(f"S{ULID_BYTES}").ravel()


def id_halves(packed: npt.NDArray[np.bytes_]) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Returns the first and last 64 bits of packed ids as numbers, which are faster to search and compare than strings."""
    halves = np.ascontiguousarray(packed).view(">u8").reshape(len(packed), 2)
    return halves[:, 0].astype(np.uint64), halves[:, 1].astype(np.uint64)


def are_in(sorted_ids: npt.NDArray[np.bytes_], ids: npt.NDArray[np.bytes_]) -> npt.NDArray[np.bool_]:
    """Returns which of these packed ids are among the sorted ones.

    They are compared by their first 64 bits, and by all 128 where these are not enough.
    """
    if not len(sorted_ids):
        return np.zeros(len(ids), dtype=bool)
    sorted_halves, halves = id_halves(sorted_ids), id_halves(ids)
    order = np.argsort(halves[0])  # in order they are found faster
    at = np.empty(len(ids), int)
    at[order] = np.searchsorted(sorted_halves[0], halves[0][order]).clip(max=len(sorted_ids) - 1)
    is_in: npt.NDArray[np.bool_] = (sorted_halves[0][at] == halves[0]) & (sorted_halves[1][at] == halves[1])
    unsure = np.flatnonzero((sorted_halves[0][at] == halves[0]) & ~is_in)
    at[unsure] = np.searchsorted(sorted_ids, ids[unsure]).clip(max=len(sorted_ids) - 1)
    is_in[unsure] = sorted_ids[at[unsure]] == ids[unsure]
    return is_in
