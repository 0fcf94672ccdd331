"""What is sent: upserts and events, divided into lanes, and packed into requests by size."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cio_pipeline.packed_ids import pack_joined
from cio_pipeline.rules.columns import Bools, Integers, offsets_and_data, to_list
from cio_pipeline.rules.items import BATCH_CALL, V1_CALL
from cio_pipeline.rules.limits import MAX_REQUEST_BYTES

FRAME_BYTES = len(b'{"batch":[]}')

MAX_LANES = 4
LANE_BYTES = 8_000_000
"""A lane is a queue of requests that are sent one after another. There is one for about every 8 MB: each lane costs a
half-filled request, and a small day needs only one."""

TEXT, BYTES = pa.large_string(), pa.large_binary()


class Item(NamedTuple):
    """An item of a request: its operation, and what the ledger needs to record about it.

    item_id: the event's id in Customer.io, or the upsert's `upsert_id`; key: the customer's; call: `batch`, or `event` for the
    v1 call; state: the attributes that the ledger records once an upsert is accepted (`attribute_state.pack`), empty for an
    event; is_new: whether it is an upsert that may create a customer; is_personless: whether that customer has only personless
    events (R5).
    """

    item_id: str
    key: str
    operation: bytes
    call: str = BATCH_CALL
    state: bytes = b""
    is_new: bool = False
    is_personless: bool = False

    @property
    def is_customer(self) -> bool:
        """Whether the item is a customer's upsert, not an event."""
        return bool(self.state)


@dataclass(frozen=True)
class Events:
    """Events to send, by column."""

    ids: pa.LargeStringArray = field(default_factory=lambda: pa.array([], TEXT))
    """Their ids in Customer.io, ULIDs."""
    keys: pa.LargeStringArray = field(default_factory=lambda: pa.array([], TEXT))
    """The keys of their customers."""
    operations: pa.LargeBinaryArray = field(default_factory=lambda: pa.array([], BYTES))
    is_v1_call: Bools = field(default_factory=lambda: np.array([], bool))
    """Whether it is sent by the v1 call, being too large for a batch."""
    can_start_campaign: Bools = field(default_factory=lambda: np.array([], bool))

    def __len__(self) -> int:
        """How many events."""
        return len(self.ids)

    @cached_property
    def packed_ids(self) -> npt.NDArray[np.bytes_]:
        """The ids as the ledger keeps them (`packed_ids.pack_ids`)."""
        return pack_id_column(self.ids)

    def take(self, rows: Integers) -> Events:
        """Returns the events in these rows."""
        at = pa.array(rows)
        ids, keys, operations = (column.take(at) for column in (self.ids, self.keys, self.operations))
        return Events(ids, keys, operations, self.is_v1_call[rows], self.can_start_campaign[rows])

    def operations_in(self, rows: Integers) -> list[memoryview]:
        """Returns the operations in these rows. They are not copied: sixteen threads that do so slow each other down."""
        offsets, content = self._offsets_and_content
        return [content[start:end] for start, end in zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)]

    @cached_property
    def _offsets_and_content(self) -> tuple[Integers, memoryview]:
        offsets, content = offsets_and_data(self.operations)
        return offsets, content.data

    def items(self) -> list[Item]:
        """Returns the events one by one."""
        columns = zip(to_list(self.ids), to_list(self.keys), to_list(self.operations), self.is_v1_call, strict=True)
        return [Item(item, key, operation, V1_CALL if large else BATCH_CALL) for item, key, operation, large in columns]


@dataclass(frozen=True)
class Request:
    """One request: upserts, then events, which are given by their rows among the events of a shard. An event of the v1 call is
    a request of its own."""

    upserts: list[Item]
    events: Events
    rows: Integers

    def __len__(self) -> int:
        """How many items."""
        return len(self.upserts) + len(self.rows)

    @cached_property
    def is_v1_call(self) -> bool:
        """Whether this is an event of the v1 call."""
        return not self.upserts and bool(self.events.is_v1_call[self.rows[0]])

    def operations(self) -> list[bytes | memoryview]:
        """Returns the operations, in order."""
        return [*(upsert.operation for upsert in self.upserts), *self.events.operations_in(self.rows)]

    def packed_ids(self) -> bytes:
        """Returns the ids of the events as the ledger keeps them, joined."""
        ids: bytes = self.events.packed_ids[self.rows].tobytes()
        return ids

    def item_ids(self) -> list[str]:
        """Returns the ids of the items."""
        return [upsert.item_id for upsert in self.upserts] + to_list(self.events.ids.take(pa.array(self.rows)))

    def event_keys(self) -> list[str]:
        """Returns the keys of the events' customers."""
        return to_list(self.events.keys.take(pa.array(self.rows)))

    @property
    def campaign_events(self) -> int:
        """How many of its events may start campaigns."""
        return int(self.events.can_start_campaign[self.rows].sum())

    def items(self) -> list[Item]:
        """Returns the items one by one."""
        return self.upserts + self.events.take(self.rows).items()

    def halves(self) -> tuple[Request, Request]:
        """Returns the first and the second half of the items."""
        middle = len(self) // 2
        return self.part(0, middle), self.part(middle, len(self))

    def part(self, start: int, end: int) -> Request:
        """Returns the items from number `start` to before number `end`."""
        upserts = len(self.upserts)
        return Request(self.upserts[start:end], self.events, self.rows[max(0, start - upserts) : max(0, end - upserts)])

    def without(self, items: Collection[int]) -> Request:
        """Returns all items except those of these numbers."""
        upserts = [upsert for number, upsert in enumerate(self.upserts) if number not in items]
        kept = [number not in items for number in range(len(self.upserts), len(self))]
        return Request(upserts, self.events, self.rows[np.array(kept, bool)])

    def last_operation(self) -> bytes:
        """Returns the last operation: an event's, if there is any."""
        operation: bytes = self.events.operations[self.rows[-1]].as_py() if len(self.rows) else self.upserts[-1].operation
        return operation

    @property
    def size(self) -> int:
        """The size of its body in bytes."""
        frame = 0 if self.is_v1_call else FRAME_BYTES + len(self) - 1
        return frame + sum(map(len, self.operations()))


def pack_requests(upserts: list[Item], events: Events) -> list[list[Request]]:
    """Returns the requests of each lane. All items of a customer are in one lane, upserts first."""
    lengths, sizes = _sizes(upserts), pc.binary_length(events.operations).to_numpy(zero_copy_only=False)
    count = min(MAX_LANES, 1 + int(lengths.sum() + sizes.sum()) // LANE_BYTES)
    keys = events.keys.dictionary_encode()
    lane_of_event = _lanes(to_list(keys.dictionary), count)[keys.indices.to_numpy()]
    lanes, lane_of_upsert = [], _lanes([upsert.key for upsert in upserts], count)
    for lane in range(count):
        of_lane = [upserts[number] for number in np.flatnonzero(lane_of_upsert == lane).tolist()]
        rows = np.flatnonzero(lane_of_event == lane)
        whole, is_v1_call = Request(of_lane, events, rows), np.append(np.zeros(len(of_lane), bool), events.is_v1_call[rows])
        ranges = request_ranges(np.append(_sizes(of_lane), sizes[rows]), is_v1_call)
        lanes.append([whole.part(start, end) for start, end in ranges])
    return lanes


def request_ranges(sizes: Integers, is_v1_call: Bools) -> Iterator[tuple[int, int]]:
    """Packs items into requests: the number of the first item of each, and of the one after its last.

    sizes: of the items, in bytes; is_v1_call: which of them are sent by the v1 call, each in a request of its own. A
    batch has at most 475,000 bytes, unless it is a single item.
    """
    ends = np.cumsum(sizes + 1)
    large = np.append(np.flatnonzero(is_v1_call), len(sizes))
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


def pack_id_column(ids: pa.LargeStringArray) -> npt.NDArray[np.bytes_]:
    """ULIDs packed as by `packed_ids.pack_ids`."""
    return pack_joined(offsets_and_data(ids)[1])


def _lanes(keys: list[str], count: int) -> Integers:
    """Returns the lane of each key, out of `count` lanes."""
    return np.fromiter(map(crc32, map(str.encode, keys)), np.uint32, len(keys)) % count


def _sizes(upserts: list[Item]) -> Integers:
    return np.array([len(upsert.operation) for upsert in upserts], int)
