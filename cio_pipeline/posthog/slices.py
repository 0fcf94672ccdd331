"""How a window is cut into queries that stay under PostHog's 50,000 rows (facts: the events table's sort key).

The table is sorted by day, event, hash of distinct_id, hash of uuid; a slice is a range of that key, so PostHog reads each
event about once. Paging by time would read everything again for every page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

MOST_ROWS = 50_000
"""`MAX_SELECT_RETURNED_ROWS`: a larger LIMIT is clamped to it without a word."""

TARGET_ROWS = 40_000
LARGEST_HASH = 2**64 - 1


@dataclass(frozen=True)
class Slice:
    """Events of some names whose hashes lie in ranges, both ends included; of a single name where they are narrowed."""

    events: tuple[str, ...]
    ids: tuple[int, int] = (0, LARGEST_HASH)
    uuids: tuple[int, int] = (0, LARGEST_HASH)

    def halves(self) -> list[Slice]:
        """Two slices that together are this one: by names, else by distinct_ids, and within a distinct_id by uuids."""
        if len(self.events) > 1:
            middle = len(self.events) // 2
            return [replace(self, events=self.events[:middle]), replace(self, events=self.events[middle:])]
        if self.ids[0] < self.ids[1]:
            return [replace(self, ids=part) for part in _halves(*self.ids)]
        return [replace(self, uuids=part) for part in _halves(*self.uuids)]


def slices(counts: dict[str, int]) -> Iterator[Slice]:
    """Slices of about 40,000 rows or fewer for a window with so many events of each name."""
    group: list[str] = []
    rows = 0
    for event, count in sorted(counts.items(), key=lambda item: item[1]):
        if count > TARGET_ROWS:
            yield from _by_hash(event, -(-count // TARGET_ROWS))
            continue
        if rows + count > TARGET_ROWS:
            yield Slice(tuple(group))
            group, rows = [], 0
        group.append(event)
        rows += count
    if group:
        yield Slice(tuple(group))


def _by_hash(event: str, parts: int) -> Iterator[Slice]:
    edges = [(LARGEST_HASH + 1) * part // parts for part in range(parts + 1)]
    for low, high in zip(edges, edges[1:], strict=False):
        yield Slice((event,), ids=(low, high - 1))


def _halves(low: int, high: int) -> list[tuple[int, int]]:
    middle = (low + high) // 2
    return [(low, middle), (middle + 1, high)]
