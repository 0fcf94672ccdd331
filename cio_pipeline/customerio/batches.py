"""What the sink sends: items, split into lanes and packed into requests by their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from zlib import crc32

from cio_pipeline.customer_state import State
from cio_pipeline.rules.limits import REQUEST_BYTES

FRAME_BYTES = len(b'{"batch":[]}')

MOST_LANES = 4
LANE_BYTES = 16_000_000
"""A lane for each 16 MB or so: lanes cost a half-filled request each, and a small day needs but one."""


@dataclass(frozen=True)
class Item:
    """One operation to send.

    name: the event's id, or `customer_item`; key: whose it is; call: `batch`, or `event` for the v1 call; state: what the
    ledger shall know of the customer when the item is accepted; is_new: whether it may make a new customer; is_personless:
    whether that one has nothing but personless events (R5).
    """

    name: str
    key: str
    operation: bytes
    call: str = "batch"
    state: State = field(default_factory=dict)
    is_new: bool = False
    is_personless: bool = False

    @property
    def is_customer(self) -> bool:
        """Whether the item is an upsert of a customer, else it is an event."""
        return bool(self.state)


def lanes(items: list[Item]) -> list[list[Item]]:
    """The items in lanes: a customer's items stay in one, in their order."""
    count = min(MOST_LANES, 1 + sum(len(item.operation) for item in items) // LANE_BYTES)
    split: list[list[Item]] = [[] for _ in range(count)]
    for item in items:
        split[crc32(item.key.encode()) % count].append(item)
    return split


def pack(items: Iterable[Item]) -> Iterator[list[Item]]:
    """The items in requests, in their order: batches of at most 475,000 bytes, an item of the v1 call by itself."""
    batch: list[Item] = []
    size = FRAME_BYTES
    for item in items:
        if batch and (item.call == "event" or size + len(item.operation) > REQUEST_BYTES):
            yield batch
            batch, size = [], FRAME_BYTES
        if item.call == "event":
            yield [item]
        else:
            batch.append(item)
            size += len(item.operation) + 1
    if batch:
        yield batch


def size(request: list[Item]) -> int:
    """The bytes of a packed request's body."""
    frame = 0 if request[0].call == "event" else FRAME_BYTES + len(request) - 1
    return frame + sum(len(item.operation) for item in request)
