"""What the sink sends: items, packed into requests by their bytes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from cio_pipeline.ledger.state import State

REQUEST_BYTES = 475_000
"""A batch must be smaller than 500 KB (Track API); Customer.io's own client flushes at 475,000 bytes."""

FRAME_BYTES = len(b'{"batch":[]}')


@dataclass(frozen=True)
class Item:
    """One operation to send.

    name: the event's uuid, or the customer's key and part; key: whose it is; call: `batch`, or `event` for the v1 call;
    state: what the ledger shall know of the customer when the item is accepted.
    """

    name: str
    key: str
    operation: bytes
    call: str = "batch"
    state: State = field(default_factory=dict)

    @property
    def is_customer(self) -> bool:
        """Whether the item is an upsert of a customer, else it is an event."""
        return bool(self.state)


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
