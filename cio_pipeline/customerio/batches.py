"""What is sent: upserts and events, split into lanes and packed into requests by their bytes."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.customer_state import pack_joined
from cio_pipeline.rules.columns import offsets_and_data
from cio_pipeline.rules.limits import MAX_REQUEST_BYTES

FRAME_BYTES = len(b'{"batch":[]}')

MAX_LANES = 4
LANE_BYTES = 16_000_000
"""A lane is a line of requests, one after another. There is one for each 16 MB or so: lanes cost a half-filled request each,
and a small day needs but one."""

TEXT, BYTES = pa.large_string(), pa.large_binary()


class Item(NamedTuple):
    """One operation to send.

    name: the event's id, or `customer_item`; key: whose it is; call: `batch`, or `event` for the v1 call; state: what the
    ledger shall know of the customer when the upsert is accepted, packed as in `customer_state.pack`; is_new: whether it may
    make a new customer; is_personless: whether that one has nothing but personless events (R5).
    """

    name: str
    key: str
    operation: bytes
    call: str = "batch"
    state: bytes = b""
    is_new: bool = False
    is_personless: bool = False

    @property
    def is_customer(self) -> bool:
        """Whether the item is an upsert of a customer, else it is an event."""
        return bool(self.state)


@dataclass(frozen=True)
class Events:
    """Events to send, by column: ids in Customer.io (ULIDs) and keys (text), operations (bytes); and, as numpy's
    bools, is_large: whether it goes by the v1 call, and is_young: whether it may start campaigns."""

    ids: Any = field(default_factory=lambda: pa.array([], TEXT))
    keys: Any = field(default_factory=lambda: pa.array([], TEXT))
    operations: Any = field(default_factory=lambda: pa.array([], BYTES))
    is_large: Any = field(default_factory=lambda: np.array([], bool))
    is_young: Any = field(default_factory=lambda: np.array([], bool))

    def __len__(self) -> int:
        """How many they are."""
        return len(self.ids)

    @cached_property
    def packed_ids(self) -> Any:
        """The ids as the ledger keeps them (`customer_state.pack_ids`)."""
        return packed(self.ids)

    def take(self, rows: Any) -> Events:
        """Those in these rows (numpy, integers)."""
        at = pa.array(rows)
        ids, keys, operations = (column.take(at) for column in (self.ids, self.keys, self.operations))
        return Events(ids, keys, operations, self.is_large[rows], self.is_young[rows])

    def items(self) -> list[Item]:
        """Each by itself."""
        columns = zip(values(self.ids), values(self.keys), values(self.operations), self.is_large, strict=True)
        return [Item(item, key, operation, "event" if large else "batch") for item, key, operation, large in columns]


@dataclass(frozen=True)
class Request:
    """What goes out together: upserts, then events, given by their rows among those of a shard. One event of the v1 call is
    alone."""

    upserts: list[Item]
    shard: Events
    rows: Any

    def __len__(self) -> int:
        """The number of its items."""
        return len(self.upserts) + len(self.rows)

    @cached_property
    def is_large(self) -> bool:
        """Whether it is an event of the v1 call."""
        return not self.upserts and bool(self.shard.is_large[self.rows[0]])

    def operations(self) -> list[bytes]:
        """The operations in their order."""
        return [upsert.operation for upsert in self.upserts] + values(self.shard.operations.take(pa.array(self.rows)))

    def packed_ids(self) -> bytes:
        """The ids of the events as the ledger keeps them, one after another."""
        ids: bytes = self.shard.packed_ids[self.rows].tobytes()
        return ids

    def names(self) -> list[str]:
        """The names of the items."""
        return [upsert.name for upsert in self.upserts] + values(self.shard.ids.take(pa.array(self.rows)))

    @property
    def campaign_events(self) -> int:
        """How many of its events may start campaigns."""
        return int(self.shard.is_young[self.rows].sum())

    def items(self) -> list[Item]:
        """Each item by itself."""
        return self.upserts + self.shard.take(self.rows).items()

    def halves(self) -> tuple[Request, Request]:
        """The first and the second half of the items."""
        middle = len(self) // 2
        return self.part(0, middle), self.part(middle, len(self))

    def part(self, start: int, end: int) -> Request:
        """The items from one number up to another."""
        upserts = len(self.upserts)
        return Request(self.upserts[start:end], self.shard, self.rows[max(0, start - upserts) : max(0, end - upserts)])

    def without(self, items: Collection[int]) -> Request:
        """All but the items of these numbers."""
        upserts = [upsert for number, upsert in enumerate(self.upserts) if number not in items]
        kept = [number not in items for number in range(len(self.upserts), len(self))]
        return Request(upserts, self.shard, self.rows[np.array(kept, bool)])

    def last_operation(self) -> bytes:
        """The last operation, which is an event's where there is any."""
        operation: bytes = self.shard.operations[self.rows[-1]].as_py() if len(self.rows) else self.upserts[-1].operation
        return operation

    @property
    def size(self) -> int:
        """The bytes of its body."""
        frame = 0 if self.is_large else FRAME_BYTES + len(self) - 1
        return frame + sum(map(len, self.operations()))


def requests(upserts: list[Item], events: Events) -> list[list[Request]]:
    """The requests of each lane: a customer's items are all in one lane, upserts first."""
    lengths, sizes = _sizes(upserts), pc.binary_length(events.operations).to_numpy(zero_copy_only=False)
    count = min(MAX_LANES, 1 + int(lengths.sum() + sizes.sum()) // LANE_BYTES)
    keys = events.keys.dictionary_encode()
    lane_of_event = _lanes(values(keys.dictionary), count)[keys.indices.to_numpy()]
    lanes, lane_of_upsert = [], _lanes([upsert.key for upsert in upserts], count)
    for lane in range(count):
        mine = [upserts[number] for number in np.flatnonzero(lane_of_upsert == lane).tolist()]
        rows = np.flatnonzero(lane_of_event == lane)
        whole, is_large = Request(mine, events, rows), np.append(np.zeros(len(mine), bool), events.is_large[rows])
        packed = pack(np.append(_sizes(mine), sizes[rows]), is_large)
        lanes.append([whole.part(start, end) for start, end in packed])
    return lanes


def pack(sizes: Any, is_large: Any) -> Iterator[tuple[int, int]]:
    """Where each request begins and ends among items of these sizes (numpy, bytes), in their order.

    A batch has at most 475,000 bytes, or but one item; a large one, of the v1 call, is by itself.
    """
    ends = np.cumsum(sizes + 1)
    large = np.append(np.flatnonzero(is_large), len(sizes))
    start, next_large = 0, 0
    while start < len(sizes):
        if start == large[next_large]:
            end, next_large = start + 1, next_large + 1
        else:
            before = ends[start - 1] if start else 0
            end = int(np.searchsorted(ends, before + MAX_REQUEST_BYTES - FRAME_BYTES + 1, "right"))
            end = min(max(end, start + 1), int(large[next_large]))
        yield start, end
        start = end


def values(column: Any) -> Any:
    """An Arrow array's values as a list, which is much quicker than its own `to_pylist`."""
    return column.to_numpy(zero_copy_only=False).tolist()


def packed(ids: Any) -> Any:
    """ULIDs, an Arrow array of large text, as `customer_state.pack_ids` packs them."""
    return pack_joined(offsets_and_data(ids)[1])


def _lanes(keys: list[str], count: int) -> Any:
    """The lane of each key, out of so many."""
    return np.fromiter(map(crc32, map(str.encode, keys)), np.uint32, len(keys)) % count


def _sizes(upserts: list[Item]) -> Any:
    return np.array([len(upsert.operation) for upsert in upserts], int)
