"""An engine on a SQLite file: its owner's only, and with one writer at a time, for whom the others wait and say so."""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import sqlalchemy as sa

SILENT_SECONDS = 5
"""A writer that waits longer than that says so."""

OF_THE_DISK = ("disk I/O error", "readonly database")

log = logging.getLogger(__name__)


def sqlite_engine(url: str, busy_seconds: int) -> sa.Engine:
    """The engine; who waits for another writer for so long gets SQLite's "database is locked"."""
    path = sa.make_url(url).database
    if path and path != ":memory:":
        _keep_private(Path(path))
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": busy_seconds})

    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _: Any) -> None:
        """A commit survives a crash of the process, and readers do not wait for the writer."""
        _write_ahead(connection, time.monotonic() + busy_seconds)
        connection.execute("PRAGMA synchronous=NORMAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        """Takes the write lock at once: a transaction that reads and then writes must not find the rows changed between."""
        if connection.get_execution_options().get("reading"):
            connection.exec_driver_sql("BEGIN")
        elif not _began_soon(connection.connection.dbapi_connection, busy_seconds):
            log.warning(
                "Another process writes to the ledger's database (CIO_LEDGER_URL): waiting, for %s seconds at most.",
                busy_seconds,
            )
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def with_hint(words: str) -> str:
    """SQLite's words at the end of a sentence; those that leave open whether it is the disk get a question."""
    return f"{words}: is its disk full or read-only?" if any(known in words for known in OF_THE_DISK) else f"{words}."


def _began_soon(connection: Any, busy_seconds: int) -> bool:
    connection.execute(f"PRAGMA busy_timeout={min(SILENT_SECONDS, busy_seconds) * 1000:.0f}")
    try:
        connection.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    finally:
        connection.execute(f"PRAGMA busy_timeout={busy_seconds * 1000}")
    return True


def _keep_private(path: Path) -> None:
    """Makes the file and its neighbours readable by their owner only; SQLite gives new neighbours the file's own mode."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        with suppress(FileNotFoundError, PermissionError):
            if path.with_name(name).is_file():
                path.with_name(name).chmod(0o600)


def _write_ahead(connection: sqlite3.Connection, deadline: float) -> None:
    """SQLite does not wait for others when it changes the journal of a new file, as several first processes do."""
    while not _could_write_ahead(connection, last=time.monotonic() > deadline):
        time.sleep(0.05)


def _could_write_ahead(connection: sqlite3.Connection, *, last: bool) -> bool:
    try:
        connection.execute("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as busy:
        if last or "locked" not in str(busy):
            raise
        return False
    return True
