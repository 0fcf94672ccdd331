"""Tables for a run that stores none, which is a dry run or an hourly one: what it writes goes to a temporary folder, on top of
the stored tables."""

from __future__ import annotations

from upath import UPath

from cio_pipeline.tables.tables import Tables


class OverlayTables(Tables):
    """Tables in a temporary folder, on top of a base that does not change: a partition that is not here is read from there."""

    def __init__(self, root: str, base: Tables) -> None:
        super().__init__(root, temporary=True)
        self._base = base

    def _read_from(self, table: str, partition: str) -> UPath:
        folder = self._folder(table, partition)
        return folder if (folder / "current.json").exists() else self._base._read_from(table, partition)
