"""The database of the ledger and the identities: SQLite in a file, or PostgreSQL by URL."""

from __future__ import annotations

import fcntl
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

LOCK_SECONDS = 300
"""How long a SQLite writer waits for another one."""

ASK_AGAIN_SECONDS = 1.0
KEEPALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""libpq's parameters: a PostgreSQL that is gone is noticed, and a firewall does not drop a connection that waits."""

SCHEMA_LOCK, ALONE_LOCK = 0x63696F01, 0x63696F02
"""Keys of PostgreSQL's advisory locks, which hold within one database."""

ESCAPED = re.compile(r"\\[0\\]")

T = TypeVar("T")


class DatabaseError(Exception):
    """The database cannot be used; the message is one sentence that names CIO_LEDGER_URL and not what it holds."""


@dataclass(frozen=True)
class Migrations:
    """The steps from the first schema to today's, in order; `name` is under what `schema_version` counts those done."""

    name: str
    steps: tuple[Callable[[sa.Connection], None], ...]


class Text(sa.TypeDecorator[str]):
    """Text that may hold NUL, which PostgreSQL refuses: it is kept as `\\0`, and a backslash as two."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """As the database keeps it."""
        return value and value.replace("\\", r"\\").replace("\0", r"\0")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """As it was given."""
        return value and ESCAPED.sub(lambda escape: "\0" if escape[0] == r"\0" else "\\", value)


versions = sa.Table(
    "schema_version",
    sa.MetaData(),
    sa.Column("name", sa.String(30), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)


def connect(url: str, metadata: sa.MetaData, migrations: Migrations | None = None) -> sa.Engine:
    """An engine on the database at `url`, with the tables of `metadata` there and as they are today.

    Its errors, and those of the engine later on, are `DatabaseError` where the database cannot be reached or used.
    """
    try:
        engine = _sqlite(url) if url.startswith("sqlite") else _postgresql(url)
        if not _is_ready(engine, metadata, migrations):
            _bring_up(engine, metadata, migrations)
    except (sa.exc.DBAPIError, OSError) as trouble:
        raise DatabaseError(_sentence(trouble)) from trouble
    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection that only reads: it sees one state of the database, and on SQLite it does not wait for a writer."""
    with engine.connect().execution_options(reading=True) as connection:
        yield connection


@contextmanager
def alone(engine: sa.Engine, waiting: Callable[[], None]) -> Iterator[None]:
    """Runs the block while no other process runs such a block on the same database; it may wait for long.

    `waiting` is called once if it has to wait. The lock ends with the process, however that ends: PostgreSQL's belongs to a
    connection, SQLite's to a file beside the database.
    """
    with _file_lock(engine.url.database) if engine.dialect.name == "sqlite" else _advisory_lock(engine) as try_to_lock:
        if not try_to_lock():
            waiting()
            while not try_to_lock():
                time.sleep(ASK_AGAIN_SECONDS)
        yield


def chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`."""
    while chunk := list(islice(items, size)):
        yield chunk


def _is_ready(engine: sa.Engine, metadata: sa.MetaData, migrations: Migrations | None) -> bool:
    with reading(engine) as connection:
        there = set(sa.inspect(connection).get_table_names())
        done = _version(connection, migrations) if versions.name in there else 0
        return there >= set(metadata.tables) and (migrations is None or done == len(migrations.steps))


def _bring_up(engine: sa.Engine, metadata: sa.MetaData, migrations: Migrations | None) -> None:
    """Creates what is missing, after what is older than today was changed; in one transaction, one process at a time."""
    with engine.begin() as transaction:
        if engine.dialect.name == "postgresql":
            transaction.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
        there = set(sa.inspect(transaction).get_table_names())
        versions.create(transaction, checkfirst=True)
        if migrations is not None:
            if there & set(metadata.tables):
                for step in migrations.steps[_version(transaction, migrations) :]:
                    step(transaction)
            transaction.execute(sa.delete(versions).where(versions.c.name == migrations.name))
            transaction.execute(sa.insert(versions), {"name": migrations.name, "version": len(migrations.steps)})
        metadata.create_all(transaction)


def _version(connection: sa.Connection, migrations: Migrations | None) -> int:
    """How many steps were done. Raises `DatabaseError` where there are more than this version knows."""
    if migrations is None:
        return 0
    done = connection.execute(sa.select(versions.c.version).where(versions.c.name == migrations.name)).scalar() or 0
    if done > len(migrations.steps):
        raise DatabaseError("CIO_LEDGER_URL names a database of a newer version of cio_pipeline.")
    return done


def _postgresql(url: str) -> sa.Engine:
    """By psycopg 3, whatever driver the URL names: SQLAlchemy's own choice has changed with 2.1."""
    location = sa.make_url(url).set(drivername="postgresql+psycopg")
    try:
        engine = sa.create_engine(location, hide_parameters=True, connect_args=KEEPALIVE)
    except ModuleNotFoundError as missing:
        raise DatabaseError(f"CIO_LEDGER_URL needs {missing.name}: install the extra, cio_pipeline[postgres].") from missing
    _speak(engine)
    return engine


def _sqlite(url: str) -> sa.Engine:
    path = sa.make_url(url).database
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = sa.create_engine(url, hide_parameters=True, connect_args={"timeout": LOCK_SECONDS})
    _speak(engine)

    @sa.event.listens_for(engine, "connect")
    def set_pragmas(connection: Any, _: Any) -> None:
        """A commit survives a crash of the process, and readers do not wait for the writer."""
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        """Takes the write lock at once: a transaction that reads and then writes must not find the rows changed between."""
        connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")

    return engine


def _speak(engine: sa.Engine) -> None:
    """Has the engine raise `DatabaseError` where the database is away, full or broken, at any time."""

    @sa.event.listens_for(engine, "handle_error")
    def unusable(context: sa.engine.ExceptionContext) -> None:
        trouble = context.sqlalchemy_exception
        if isinstance(trouble, sa.exc.OperationalError | sa.exc.InterfaceError) or type(trouble) is sa.exc.DatabaseError:
            raise DatabaseError(_sentence(trouble))


def _sentence(trouble: sa.exc.DBAPIError | OSError) -> str:
    """The driver's own words, which name the host and the user but no password."""
    original = trouble.orig if isinstance(trouble, sa.exc.DBAPIError) else trouble.strerror
    words = (str(original).strip().splitlines() or ["no reason given"])[0]
    return f"The ledger's database (CIO_LEDGER_URL) cannot be used: {words.rstrip('.')}."


@contextmanager
def _file_lock(database: str | None) -> Iterator[Callable[[], bool]]:
    if not database:
        yield lambda: True
        return
    with Path(f"{database}.lock").open("w") as file:

        def try_to_lock() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield try_to_lock


@contextmanager
def _advisory_lock(engine: sa.Engine) -> Iterator[Callable[[], bool]]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        try:
            yield lambda: bool(connection.scalar(sa.select(sa.func.pg_try_advisory_lock(ALONE_LOCK))))
        finally:
            connection.invalidate()
