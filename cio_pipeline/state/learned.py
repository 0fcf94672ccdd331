"""What events say about people, on its way to the database: made by workers, kept in files, and read in key order."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import sqlalchemy as sa

from cio_pipeline.rules.columns import to_list
from cio_pipeline.state.database import chunks
from cio_pipeline.state.identity_tables import COLUMNS, LOOKED_UP, emails, identified, links, merges
from cio_pipeline.tables.files import StorageError, temporary_file_errors

BATCH_ROWS = 10_000
SORTED_BATCHES = 50
"""The number of batches that are sorted at once: inserting rows in the order of a table's key takes a third of the time."""


class Learned(NamedTuple):
    """What some events of a day say about people.

    rows: by table's name; counts: as in `Identities.replace`; content_hash: the sum of the hashes of the rows that later days
    look up.
    """

    rows: dict[str, pa.Table]
    counts: dict[str, int]
    content_hash: int

    @classmethod
    def of(cls, facts: pd.DataFrame, merges: pd.DataFrame, links: Set[tuple[str, str]] = frozenset()) -> Learned:
        """Makes it from the frames of `facts.learn` and `stitching.merges`, and the links."""
        rows = _rows(facts, merges, links)
        content_hash = sum(_hash(table, rows[table]) for table in LOOKED_UP)
        return cls({table.name: of_table for table, of_table in rows.items()}, _counts(rows, len(facts)), content_hash)


class RowFile:
    """A temporary file of a table's rows, which are read once all are written. Raises `StorageError`."""

    def __init__(self, folder: Path, table: sa.Table, schema: pa.Schema) -> None:
        self._path, self._schema, self._rows = folder / f"{table.name}.arrows", schema, 0

    def __enter__(self) -> RowFile:
        with temporary_file_errors(self._path.parent):
            self._writer = pa.ipc.new_stream(str(self._path), self._schema)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError, pa.ArrowException):
            self._writer.close()

    def add(self, rows: pa.Table) -> None:
        """Adds rows."""
        self._rows += len(rows)
        with temporary_file_errors(self._path.parent):
            self._writer.write_table(rows, BATCH_ROWS)

    def read(self) -> Iterator[pa.RecordBatch]:
        """Yields all rows in batches; every `SORTED_BATCHES` of them are sorted together."""
        rows = 0
        with temporary_file_errors(self._path.parent):
            self._writer.close()
            with pa.OSFile(str(self._path)) as file, pa.ipc.open_stream(file) as stream:
                for batches in chunks(iter(stream), SORTED_BATCHES):
                    table = pa.Table.from_batches(batches)
                    rows += len(table)
                    yield from table.sort_by([(name, "ascending") for name in table.column_names]).to_batches(BATCH_ROWS)
        if rows != self._rows:
            raise StorageError(f"Only {rows:,} of the {self._rows:,} learned rows are in {self._path}: run this again.")


def bound(column: pa.Array) -> list[Any]:
    """Returns the column's values as `Text` stores them."""
    if pa.types.is_string(column.type):
        column = pc.replace_substring(pc.replace_substring(column, "\\", "\\\\"), "\0", "\\0")
    return to_list(column)


def _hash(table: sa.Table, rows: pa.Table) -> int:
    """Returns the sum of the rows' hashes, which does not depend on their order, or on how they are divided."""
    columns = [column.to_numpy().tolist() for column in rows.columns]
    name = table.name.encode()
    hashes = (blake2b(repr(row).encode(), digest_size=16, person=name).digest() for row in zip(*columns, strict=True))
    return sum(int.from_bytes(hashed, "big") for hashed in hashes)


def _rows(facts: pd.DataFrame, merged: pd.DataFrame, linked: Set[tuple[str, str]]) -> dict[sa.Table, pa.Table]:
    """Returns the rows of a part of a day, by table, without the day."""
    with_email = facts[facts["email"].notna()].rename(columns={"email_set_at": "microseconds"})
    named = merged.assign(microseconds=merged["timestamp"].astype("datetime64[us, UTC]").astype("int64"))
    names = pd.DataFrame(sorted(linked), columns=["name", "distinct_id"], dtype=object)
    frames = {identified: facts[facts["identified"].to_numpy(bool)], emails: with_email, merges: named, links: names}
    return {
        table: pa.Table.from_pandas(frame[COLUMNS[table].names], COLUMNS[table], preserve_index=False)
        for table, frame in frames.items()
    }


def _counts(rows: dict[sa.Table, pa.Table], people: int) -> dict[str, int]:
    named = {"identified": len(rows[identified]), "emails": len(rows[emails]), "anonymous ids named": len(rows[merges])}
    return {"people": people, **named}
