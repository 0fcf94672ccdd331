"""The database of the ledger and the identities: SQLite in a file, or PostgreSQL by URL."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

LOCK_SECONDS = 60
"""How long a SQLite writer waits for another one."""

T = TypeVar("T")


def connect(url: str, metadata: sa.MetaData) -> sa.Engine:
    """An engine on the database at `url`, with the tables of `metadata` there. Raises SQLAlchemy's errors, without the URL."""
    engine = _sqlite(url) if url.startswith("sqlite") else sa.create_engine(url, hide_parameters=True)
    metadata.create_all(engine)
    return engine


def chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`."""
    while chunk := list(islice(items, size)):
        yield chunk


def _sqlite(url: str) -> sa.Engine:
    path = sa.make_url(url).database
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": LOCK_SECONDS})

    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _: Any) -> None:
        """A commit survives a crash of the process, and readers do not wait for the writer."""
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        """Takes the write lock at once: a transaction that reads and then writes must not find the rows changed between."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine
