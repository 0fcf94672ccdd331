"""The tables between the stages: sharded Parquet in a folder or at any fsspec URL.

    <root>/<table>/<partition>/current.json         names the version to read, its shards and rows
    <root>/<table>/<partition>/<version>/0000.parquet

A version is written whole before `current.json` names it, so nobody ever reads half a table, and two runs of one partition
do no harm: the last to finish wins. A version that was replaced stays for a day, for whoever is still reading it.
"""

from __future__ import annotations

import json
import os
import resource
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from cio_pipeline.spill import spill_folder

SHARD_ROWS = 70_000
SHARD_BYTES = 50_000_000
"""About the most that one shard holds, which bounds the memory of every stage: a shard is there about three times over."""

ROW_GROUP = 10_000
"""Small enough that a few people's rows are found without reading the shard, where it is sorted by person."""

OPEN_FILES = 10_000
KEPT_VERSIONS = timedelta(days=1)
VERSION_FORMAT = "%Y%m%dT%H%M%S"

Finish = Callable[[pd.DataFrame], pd.DataFrame]


class NotMaterialized(Exception):
    """A table's partition is read that no run has written; the message names both and what to do."""


@dataclass(frozen=True)
class Version:
    """One written version of a table's partition."""

    name: str
    shards: int
    rows: int


def keep_private() -> None:
    """What this process writes from here on is readable by its owner only."""
    os.umask(0o077)


def allow_open_files() -> None:
    """Lets this process have a file open for each shard of a large day's tables: often only 1,024 may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def shards_for(rows: int, row_bytes: int) -> int:
    """How many shards so many rows of about so many bytes are split into."""
    return max(1, -(-rows // SHARD_ROWS), -(-rows * row_bytes // SHARD_BYTES))


def shard_of(texts: pd.Series[Any], shards: int) -> Any:
    """The shard of each text, a number below `shards`; the same text is always in the same one."""
    hashed = pd.util.hash_array(texts.to_numpy(object), categorize=True)
    return hashed % shards


class Tables:
    """Tables under one root, read and written shard by shard."""

    def __init__(self, root: str) -> None:
        self.root = UPath(root)

    def current(self, table: str, partition: str) -> Version | None:
        """The version to read, or None where no run has written this partition."""
        pointer = self._folder(table, partition) / "current.json"
        return Version(**json.loads(pointer.read_text())) if pointer.exists() else None

    def version(self, table: str, partition: str) -> Version:
        """The version to read. Raises `NotMaterialized` where no run has written this partition."""
        version = self.current(table, partition)
        if version is None:
            raise NotMaterialized(f"{table} of {partition} is not there: materialize {table} for {partition} first.")
        return version

    def read(self, table: str, partition: str, columns: list[str] | None = None) -> Iterator[pd.DataFrame]:
        """The partition's shards, one frame each. Raises `NotMaterialized` where there is none."""
        version = self.version(table, partition)
        for shard in range(version.shards):
            with (self._folder(table, partition) / version.name / f"{shard:04d}.parquet").open("rb") as file:
                frame = pq.read_table(file, columns=columns).to_pandas()
            pa.default_memory_pool().release_unused()
            yield frame

    def rows(self, table: str, partition: str, by: str, values: list[str]) -> Iterator[pd.DataFrame]:
        """The rows whose column `by`, by which the table was split and sorted, has one of the values: a frame a shard.

        Reads only shards and row groups that may hold such a row. A partition that no run has written has no rows.
        """
        version = self.current(table, partition)
        if version is None or not values:
            return
        for shard in sorted(set(shard_of(pd.Series(values, dtype=object), version.shards).tolist())):
            with (self._folder(table, partition) / version.name / f"{shard:04d}.parquet").open("rb") as file:
                found = pq.read_table(file, filters=[(by, "in", values)]).to_pandas()
            if not found.empty:
                yield found

    @contextmanager
    def replace(self, table: str, partition: str, schema: pa.Schema, shards: int) -> Iterator[Writer]:
        """A writer whose frames become the partition's new version when the block ends well, and vanish when it does not."""
        folder = self._folder(table, partition)
        name = f"{datetime.now(timezone.utc):{VERSION_FORMAT}}-{uuid.uuid4().hex[:8]}"
        with ExitStack() as stack:
            spill = stack.enter_context(spill_folder())
            writer = Writer(folder / name, spill, schema, shards)
            try:
                yield writer
            except BaseException:
                writer.discard()
                raise
            self._publish(folder, Version(name, shards, writer.finish()))
        _prune(folder, name)

    def _folder(self, table: str, partition: str) -> UPath:
        return self.root / table / partition

    def _publish(self, folder: UPath, version: Version) -> None:
        pointer, new = folder / "current.json", folder / f"{version.name}.json"
        new.write_text(json.dumps(vars(version)))
        new.rename(pointer)


class Writer:
    """Frames in, split over the shards by a text column; each shard is finished by itself and written as one file."""

    def __init__(self, folder: UPath, spill: Path, schema: pa.Schema, shards: int) -> None:
        self._folder, self._spill, self._schema, self._shards = folder, spill, schema, shards
        self._pieces: dict[int, pa.RecordBatchStreamWriter] = {}
        self._finish_shard: Finish = lambda frame: frame

    def add(self, frame: pd.DataFrame, by: str) -> None:
        """Adds rows; those with the same text in the column `by` come into the same shard."""
        if frame.empty:
            return
        shards = shard_of(frame[by], self._shards)
        order = shards.argsort(kind="stable")
        rows, ends = self._arrow(frame.take(order)), shards[order].searchsorted(range(self._shards), "right")
        for shard, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            if start < end:
                self._piece(shard).write_table(rows.slice(start, end - start))

    def finish_each(self, finish: Finish) -> None:
        """Has `finish` make each shard's final rows out of those that were added."""
        self._finish_shard = finish

    def finish(self) -> int:
        """Writes the shards and gives the number of rows."""
        self._close()
        self._folder.mkdir(parents=True)
        return sum(self._write(shard) for shard in range(self._shards))

    def discard(self) -> None:
        """Closes what is open; the spilled rows go with their temporary folder."""
        self._close()

    def _piece(self, shard: int) -> pa.RecordBatchStreamWriter:
        """Rows are spilled as Arrow's stream: a Parquet file would keep the statistics of all its row groups in memory."""
        if shard not in self._pieces:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._pieces[shard] = pa.ipc.new_stream(str(self._spilled_to(shard)), self._schema, options=options)
        return self._pieces[shard]

    def _close(self) -> None:
        for piece in self._pieces.values():
            piece.close()
        self._pieces.clear()

    def _write(self, shard: int) -> int:
        """Writes a shard and gives its rows; in a method of its own, so that no two shards are in memory at once."""
        frame = self._finish_shard(self._spilled(shard))
        with (self._folder / f"{shard:04d}.parquet").open("wb") as file:
            pq.write_table(self._arrow(frame), file, compression="zstd", row_group_size=ROW_GROUP)
        pa.default_memory_pool().release_unused()
        return len(frame)

    def _spilled(self, shard: int) -> pd.DataFrame:
        """The shard's rows, in one piece each column: pandas would make that of many again and again."""
        path = self._spilled_to(shard)
        if not path.exists():
            return self._schema.empty_table().to_pandas()
        with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as spilled:
            return spilled.read_all().combine_chunks().to_pandas()

    def _spilled_to(self, shard: int) -> Path:
        return self._spill / f"{shard:04d}.arrows"

    def _arrow(self, frame: pd.DataFrame) -> pa.Table:
        return pa.Table.from_pandas(frame[self._schema.names], schema=self._schema, preserve_index=False)


def _prune(folder: UPath, kept: str) -> None:
    """Removes versions that were replaced more than a day ago."""
    oldest = f"{datetime.now(timezone.utc) - KEPT_VERSIONS:{VERSION_FORMAT}}"
    for version in folder.iterdir():
        if version.is_dir() and version.name != kept and version.name < oldest:
            version.rmdir(recursive=True)
