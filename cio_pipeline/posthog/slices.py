"""Cuts a time window into slices, each small enough for one query: PostHog returns at most 50,000 rows.

PostHog's table is sorted by day, event, hash of distinct_id and hash of uuid. A slice is a range of that key, so PostHog reads
each event about once. Paging by time would make it read everything again for every page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

MAX_ROWS = 50_000
"""PostHog's `MAX_SELECT_RETURNED_ROWS`, to which a larger LIMIT is silently reduced."""

TARGET_ROWS = 40_000
"""The planned size of a slice."""

MAX_NAMES = 500
"""Keeps a query with that many names well under ClickHouse's `max_query_size` of 256 KiB."""

MAX_CUTS = 16
"""A slice that is still too big after this many cuts fails (500 names need 9 cuts; 7 more leave a 16,000th of a name)."""

LARGEST_HASH = 2**64 - 1


@dataclass(frozen=True)
class Slice:
    """The events with one of these names whose hashes are in these ranges, both ends included.

    Only a slice of a single name has narrower ranges than all hashes.
    """

    events: tuple[str, ...]
    ids: tuple[int, int] = (0, LARGEST_HASH)
    uuids: tuple[int, int] = (0, LARGEST_HASH)
    cuts: int = 0

    def smaller(self) -> list[Slice]:
        """Cuts this slice into halves of its names, or a single name into quarters. Returns none if it cannot be cut further.

        A quarter has half of the range of each hash, so it is smaller whether the events belong to many people or to one.
        """
        cut = replace(self, cuts=self.cuts + 1)
        if self.cuts == MAX_CUTS:
            return []
        if len(self.events) > 1:
            middle = len(self.events) // 2
            return [replace(cut, events=self.events[:middle]), replace(cut, events=self.events[middle:])]
        quarters = [replace(cut, ids=ids, uuids=uuids) for ids in _parts(self.ids, 2) for uuids in _parts(self.uuids, 2)]
        return quarters if len(quarters) > 1 else []

    def by_uuid(self, rows: int, target: int = TARGET_ROWS) -> list[Slice]:
        """Cuts a slice of a single name with `rows` rows by uuid, into slices of about `target`. Returns none if it cannot be
        cut further.

        The hashes of uuids are evenly distributed, even if most events have the same distinct_id.
        """
        parts = _parts(self.uuids, max(2, -(-rows // target)))
        cut = replace(self, cuts=self.cuts + 1)
        return [replace(cut, uuids=part) for part in parts] if len(parts) > 1 and self.cuts < MAX_CUTS else []


def slices(counts: dict[str, int], target: int = TARGET_ROWS) -> Iterator[Slice]:
    """Returns slices of about `target` rows or fewer, given the number of events by name."""
    group: list[str] = []
    rows = 0
    for event, count in sorted(counts.items(), key=lambda item: item[1]):
        if count > target:
            yield from (Slice((event,), ids=part) for part in _parts((0, LARGEST_HASH), -(-count // target)))
            continue
        if group and (rows + count > target or len(group) == MAX_NAMES):
            yield Slice(tuple(group))
            group, rows = [], 0
        group.append(event)
        rows += count
    if group:
        yield Slice(tuple(group))


def _parts(hashes: tuple[int, int], count: int) -> list[tuple[int, int]]:
    """Divides a range, both ends included, into `count` equal parts, or fewer if it has fewer hashes."""
    low, size = hashes[0], hashes[1] - hashes[0] + 1
    edges = [low + size * part // count for part in range(count + 1)]
    return [(start, end - 1) for start, end in zip(edges, edges[1:], strict=False) if start < end]
