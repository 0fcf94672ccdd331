"""An engine for a SQLite file: readable by its owner only, with one writer at a time. Others wait for it, and log that."""

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
"""A writer that waits longer than this logs it."""

DISK_ERRORS = ("disk I/O error", "readonly database")

log = logging.getLogger(__name__)


def sqlite_engine(url: str, busy_seconds: int) -> sa.Engine:
    """Returns the engine. After `busy_seconds` of waiting for another writer, SQLite raises "database is locked"."""
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
        """Takes the write lock at once, so that rows do not change between a transaction's reading and its writing."""
        if connection.get_execution_options().get("reading"):
            connection.exec_driver_sql("BEGIN")
        elif not _began_soon(connection.connection.dbapi_connection, busy_seconds):
            log.warning(
                "Another process is writing to the ledger's database (CIO_LEDGER_URL): waiting for it, at most %s seconds.",
                busy_seconds,
            )
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def with_hint(words: str) -> str:
    """Returns SQLite's words as the end of a sentence, with a question about the disk if they may be about it."""
    return f"{words}: is its disk full or read-only?" if any(known in words for known in DISK_ERRORS) else f"{words}."


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
    """Makes the file, and those that SQLite keeps next to it, readable by their owner only; new ones get the file's mode."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o600))
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        with suppress(FileNotFoundError, PermissionError):
            if path.with_name(name).is_file():
                path.with_name(name).chmod(0o600)


def _write_ahead(connection: sqlite3.Connection, deadline: float) -> None:
    """Switches to WAL. SQLite itself does not wait when several processes do so for a new file at once."""
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
