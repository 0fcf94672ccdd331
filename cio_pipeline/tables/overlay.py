"""Tables of a few days beside those that are kept: what is written goes into a temporary folder, all else is read below it."""

from __future__ import annotations

from upath import UPath

from cio_pipeline.tables.tables import Tables


class OverlayTables(Tables):
    """Tables in a temporary folder, over others that stay as they are: a partition that is not written here is read there."""

    def __init__(self, root: str, below: Tables) -> None:
        super().__init__(root, temporary=True)
        self._below = below

    def _read_from(self, table: str, partition: str) -> UPath:
        folder = self._folder(table, partition)
        return folder if (folder / "current.json").exists() else self._below._read_from(table, partition)
