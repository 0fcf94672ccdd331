"""A partition's shards by column: only the columns that are used are read."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import Version


class ShardColumns:
    """A shard whose columns, which are chunked Arrow arrays, are read when they are used. Raises `StorageError`."""

    def __init__(self, tables: Tables, table: str, partition: str, version: Version, shard: int, together: list[str]) -> None:
        """together: columns that are all read when the first of them is used."""
        self._tables, self._place, self._together = tables, (table, partition, version, shard), together
        self._rows = version.shard_rows[shard]
        self._read: dict[str, pa.ChunkedArray] = {}

    def __len__(self) -> int:
        """The number of rows."""
        return self._rows

    def __getitem__(self, name: str) -> pa.ChunkedArray:
        """A column."""
        if name not in self._read:
            names = self._together if name in self._together else [name]
            rows = self._tables.shard(*self._place, names)
            self._read |= {one: rows[one] for one in names}
        return self._read[name]


def customers_and_events(tables: Tables, day: str) -> Iterator[tuple[ShardColumns, ShardColumns]]:
    """Yields the day's `customers` and `events`, shard by shard. Columns that are large or rarely needed are read on demand.

    Raises `NotMaterialized` if the day was never derived.
    """
    customers = _shards_by_column(tables, "customers", day, ["key", "part", "state", "consent"])
    events = _shards_by_column(tables, "events", day, ["ulid", "key", "personless"])
    yield from zip(customers, events, strict=True)


def _shards_by_column(tables: Tables, table: str, partition: str, together: list[str]) -> Iterator[ShardColumns]:
    version = tables.version(table, partition)
    for shard in range(version.shards):
        yield ShardColumns(tables, table, partition, version, shard, together)
