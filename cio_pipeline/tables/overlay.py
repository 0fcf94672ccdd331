"""Tables for dry runs and hourly runs, which store none: what they write goes to a temporary folder, on top of the stored
tables."""

from __future__ import annotations

from upath import UPath

from cio_pipeline.tables.pinned import PinnedTables
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import Pointer


class OverlayTables(Tables):
    """Tables in a temporary folder, on top of a base that does not change: a partition that is not here is read from there."""

    def __init__(self, root: str, base: PinnedTables) -> None:
        super().__init__(root, temporary=True)
        self._base = base

    def _read_from(self, table: str, partition: str) -> UPath:
        return super()._read_from(table, partition) if self._has(table, partition) else self._base._read_from(table, partition)

    def _pointer(self, table: str, partition: str) -> Pointer | None:
        return super()._pointer(table, partition) if self._has(table, partition) else self._base._pointer(table, partition)

    def _remedy(self, table: str, partition: str) -> str:
        return super()._remedy(table, partition) if self._has(table, partition) else self._base._remedy(table, partition)

    def _has(self, table: str, partition: str) -> bool:
        return (self._folder(table, partition) / "current.json").exists()
