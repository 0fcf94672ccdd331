"""Tables for a run that must use what it has checked, whatever other runs write meanwhile."""

from __future__ import annotations

from contextlib import suppress

from upath import UPath

from cio_pipeline.tables.files import errors_of
from cio_pipeline.tables.tables import Tables
from cio_pipeline.tables.versions import Pointer, read_pointer


class PinnedTables(Tables):
    """Tables that are only read: each partition, or all tables of its group, in the version that was current when it was first
    asked for."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(str(tables.root))
        self._pinned: dict[UPath, Pointer | None] = {}

    def _pointer(self, table: str, partition: str) -> Pointer | None:
        folder = self._folder(table, partition)
        if folder not in self._pinned:
            self._pinned[folder] = super()._pointer(table, partition)
        return self._pinned[folder]

    def _remedy(self, table: str, partition: str) -> str:
        folder = self._folder(table, partition)
        pinned, current = self._pinned.get(folder), None
        with suppress(*errors_of(folder, TypeError, ValueError)):
            current = read_pointer(folder / "current.json")
        if pinned is not None and current is not None and current.version != pinned.version:
            return "another run has replaced it since this one began, so run this again."
        return super()._remedy(table, partition)
