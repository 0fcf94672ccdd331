"""A lock on a database that one process at a time holds, as long as its session or its file exists."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import sqlalchemy as sa

from cio_pipeline.state.database import DatabaseError, is_in_memory, reading

RETRY_SECONDS = 1.0

LOCK_KEY = 0x63696F02
"""A key of PostgreSQL's advisory locks, which are per database."""

LOCK_IS_HELD = sa.text(
    "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = pg_locks.database WHERE datname = current_database()"
    " AND locktype = 'advisory' AND classid = 0 AND objid = :key AND objsubid = 1 AND granted AND pid = :process"
)
"""The advisory lock as PostgreSQL lists it: classid and objid are the halves of a bigint key, with objsubid 1."""

IsHeld = Callable[[sa.Connection | None], bool]
"""Returns whether the lock is still held, as seen from a transaction of the database, or without one."""

TryToLock = Callable[[], bool]


class LockLost(DatabaseError):
    """The lock was lost, with its session or file, while its holder was at work."""


def hold_delivery_lock(engine: sa.Engine, waiting: Callable[[], None]) -> AbstractContextManager[IsHeld]:
    """Holds the lock during the block, after waiting for other processes, which may take long.

    `waiting` is called once if it has to wait. The lock ends with the process, however that ends: PostgreSQL's belongs to a
    session, SQLite's to a file next to the database. As either may be lost earlier, the block gets a function that returns
    whether the lock is still held.
    """
    return _held(_file_lock(engine) if engine.dialect.name == "sqlite" else _advisory_lock(engine), waiting)


@contextmanager
def _held(lock: AbstractContextManager[tuple[TryToLock, IsHeld]], waiting: Callable[[], None]) -> Iterator[IsHeld]:
    with lock as (try_to_lock, is_held):
        if not try_to_lock():
            waiting()
            while not try_to_lock():
                time.sleep(RETRY_SECONDS)
        yield is_held


@contextmanager
def _file_lock(engine: sa.Engine) -> Iterator[tuple[TryToLock, IsHeld]]:
    if is_in_memory(engine):
        yield lambda: True, lambda _: True
        return
    path = Path(f"{engine.url.database}.lock")
    opened: list[int] = []

    def try_to_lock() -> bool:
        """The file is opened each time, as the one that was waited for may be gone or replaced."""
        _close(opened)
        opened.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        os.fchmod(opened[0], 0o600)
        try:
            fcntl.flock(opened[0], fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return is_held()

    def is_held(_: sa.Connection | None = None) -> bool:
        """Returns whether our file is still the one that other processes find, and lock, by its name."""
        try:
            return os.path.samestat(path.stat(), os.fstat(opened[0]))
        except OSError:
            return False

    try:
        yield try_to_lock, is_held
    except OSError as error:
        if error.filename != str(path):
            raise
        raise DatabaseError(
            f"The ledger's lock file {path} cannot be used: {error.strerror}. This process must be able to create and write"
            " that file."
        ) from error
    finally:
        _close(opened)


def _close(opened: list[int]) -> None:
    while opened:
        os.close(opened.pop())


@contextmanager
def _advisory_lock(engine: sa.Engine) -> Iterator[tuple[TryToLock, IsHeld]]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        process = connection.scalar(sa.select(sa.func.pg_backend_pid()))

        def try_to_lock() -> bool:
            return bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(LOCK_KEY))))

        def is_held(transaction: sa.Connection | None) -> bool:
            if transaction is None:
                with reading(engine) as own:
                    return is_held(own)
            return bool(transaction.scalar(LOCK_IS_HELD, {"key": LOCK_KEY, "process": process}))

        try:
            yield try_to_lock, is_held
        finally:
            connection.invalidate()
