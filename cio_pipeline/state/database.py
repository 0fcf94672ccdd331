"""The database of the ledger and the identities: SQLite in a file, or PostgreSQL by URL."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, NoReturn, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

from cio_pipeline.errors import PipelineError
from cio_pipeline.state.sqlite import sqlite_engine, with_hint

BUSY_SECONDS = 300
"""How long a writer waits for another one, or any connection for a lock of PostgreSQL."""

CUT_OFF_SECONDS = 60
"""After this long PostgreSQL ends the session of a host that is cut off; the default of CIO_LEDGER_LOCK_SECONDS."""

KEEPALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""libpq's parameters: they detect a PostgreSQL that is gone, and keep firewalls from dropping idle connections."""

MAX_CONNECTIONS = 4
"""The most that a process has to a PostgreSQL: one holds the delivery lock, the others are what its lanes take turns with."""

POOL = {"pool_size": MAX_CONNECTIONS, "max_overflow": 0, "pool_timeout": 3600}
"""Who waits for a connection waits for those that have one, and what these wait for has its own, shorter limits."""

SCHEMA_LOCK = 0x63696F01
"""A key of PostgreSQL's advisory locks, which hold within one database."""

ESCAPED = re.compile(r"\\[0\\]")

INVALID = re.compile(r'(\binvalid\b[^"]*)"[^"]*"')
"""How libpq quotes the part of a URL that it cannot read, which may be a password in the wrong place."""

T = TypeVar("T")


class DatabaseError(PipelineError):
    """The database cannot be used; the message is one sentence that names CIO_LEDGER_URL, but not its value."""


@dataclass(frozen=True)
class SchemaVersion:
    """The version of a set of tables; `number` increases whenever they, or what they mean, change."""

    name: str
    number: int


class Text(sa.TypeDecorator[str]):
    """Text that may contain NUL, which PostgreSQL refuses: it is stored as `\\0`, and a backslash as two."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect | None) -> str | None:  # noqa: ARG002
        """The text as the database stores it."""
        return value and value.replace("\\", r"\\").replace("\0", r"\0")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """The original text."""
        if value is None or "\\" not in value:
            return value
        return ESCAPED.sub(lambda escape: "\0" if escape[0] == r"\0" else "\\", value)


versions = sa.Table(
    "schema_version",
    sa.MetaData(),
    sa.Column("name", sa.String(30), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
)

_engines: dict[tuple[str, int, int], sa.Engine] = {}
_making_engine = threading.Lock()

_sqlite_turn = threading.RLock()
"""Held by the thread that writes to SQLite. SQLite itself would let the others sleep, and try again ever more rarely."""


def connect(
    url: str, metadata: sa.MetaData, version: SchemaVersion | None = None, cut_off_seconds: int = CUT_OFF_SECONDS
) -> sa.Engine:
    """This process's engine for the database at `url`. With a version, it creates the tables of `metadata` if there are none.

    Raises `DatabaseError` if the tables are of another version. The engine's own errors are `DatabaseError`s, too, now and
    later. cut_off_seconds: how long PostgreSQL keeps the session, and its locks, of a host that no longer answers.
    """
    try:
        engine = _engine(url, cut_off_seconds)
        if version is not None:
            _create_tables(engine, metadata, version)
    except (sa.exc.DBAPIError, OSError) as error:
        raise DatabaseError(_sentence(error)) from None
    return engine


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection that only reads; on SQLite neither it nor a writer waits for the other."""
    with _without_driver_errors(), engine.connect().execution_options(reading=True) as connection:
        yield connection


@contextmanager
def writing(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction, committed if the block succeeds.

    SQLite has only one at a time. The threads of this process take turns; other processes wait up to `BUSY_SECONDS`.
    """
    turn = _sqlite_turn if engine.dialect.name == "sqlite" else nullcontext()
    with _without_driver_errors(), turn, engine.begin() as transaction:
        yield transaction


def values(engine: sa.Engine, texts: list[str]) -> sa.ColumnElement[str]:
    """The texts as the only column of a table that a query can join. Nothing is written for it, and no index limits them."""
    bound = Text().process_bind_param
    kept = [bound(text, None) for text in texts]
    column = sa.column("value", Text())
    if engine.dialect.name == "postgresql":
        array = sa.cast(sa.bindparam("texts", kept, unique=True), postgresql.ARRAY(sa.Text()))
        return sa.func.unnest(array).table_valued(column).render_derived().c.value
    return sa.func.json_each(json.dumps(kept)).table_valued(column).c.value


def insert(connection: sa.Connection, table: sa.Table) -> postgresql.Insert:
    """An INSERT with `on_conflict_do_update`, which both dialects have, in modules of their own."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement: postgresql.Insert = dialect.insert(table)
    return statement


def chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """The items in lists of at most `size`."""
    while chunk := list(islice(items, size)):
        yield chunk


def is_in_memory(engine: sa.Engine) -> bool:
    """Whether it is a SQLite database without a file, which no other process can see."""
    return engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:")


@contextmanager
def _without_driver_errors() -> Iterator[None]:
    """Removes the driver's error, which SQLAlchemy chains to ours, since PostgreSQL's quotes rows."""
    try:
        yield
    except DatabaseError as error:
        error.__context__ = None
        raise error from None


def _engine(url: str, cut_off_seconds: int) -> sa.Engine:
    """One for each database and process, as a fork must not use its parent's connections."""
    with _making_engine:
        key = (url, cut_off_seconds, os.getpid())
        engine = _engines.get(key) or _new_engine(url, cut_off_seconds)
        if not is_in_memory(engine):
            _engines[key] = engine
        return engine


def _new_engine(url: str, cut_off_seconds: int) -> sa.Engine:
    engine = sqlite_engine(url, BUSY_SECONDS) if url.startswith("sqlite") else _postgresql(url, cut_off_seconds)
    _raise_database_errors(engine)
    return engine


def _create_tables(engine: sa.Engine, metadata: sa.MetaData, version: SchemaVersion) -> None:
    """Creates the tables if there are none, in one transaction, one process at a time."""
    with reading(engine) as connection:
        if _tables_exist(connection, metadata, version):
            return
    with writing(engine) as transaction:
        if engine.dialect.name == "postgresql":
            transaction.execute(sa.select(sa.func.pg_advisory_xact_lock(SCHEMA_LOCK)))
        if not _tables_exist(transaction, metadata, version):
            versions.create(transaction, checkfirst=True)
            metadata.create_all(transaction, checkfirst=False)
            transaction.execute(sa.insert(versions), {"name": version.name, "version": version.number})


def _tables_exist(connection: sa.Connection, metadata: sa.MetaData, version: SchemaVersion) -> bool:
    """Whether the tables are there. Raises `DatabaseError` if they are of another version."""
    inspector = sa.inspect(connection)
    existing = set(inspector.get_table_names())
    stamp = sa.select(versions.c.version).where(versions.c.name == version.name)
    stamped = connection.execute(stamp).scalar() if versions.name in existing else None
    if stamped is None and not existing & set(metadata.tables):
        return False
    if stamped != version.number or any(
        name not in existing or {column["name"] for column in inspector.get_columns(name)} != set(table.columns.keys())
        for name, table in metadata.tables.items()
    ):
        raise DatabaseError(
            f"CIO_LEDGER_URL names a database (unset: ledger.db in CIO_DATA_DIR) whose tables of the {version.name} are another"
            " version's of cio_pipeline: name an empty database, or go on with the version that made it (an empty ledger knows"
            " of no delivery: all of it is sent again)."
        )
    return True


def _postgresql(url: str, cut_off_seconds: int) -> sa.Engine:
    """With psycopg 3, whatever driver the URL names, since SQLAlchemy's default has changed with 2.1."""
    location = sa.make_url(url).set(drivername="postgresql+psycopg")
    try:
        engine = sa.create_engine(location, hide_parameters=True, connect_args=KEEPALIVE, pool_pre_ping=True, **POOL)
    except ModuleNotFoundError as missing:
        raise DatabaseError(f"CIO_LEDGER_URL needs {missing.name}: install the extra, cio_pipeline[postgres].") from missing

    @sa.event.listens_for(engine, "connect")
    def bound_waits(connection: Any, _: Any) -> None:
        """So that the server detects a client that is cut off (by default after two hours), and no wait for a lock is
        endless."""
        with connection.cursor() as cursor:
            for setting in _session_settings(cut_off_seconds).items():
                cursor.execute("SELECT set_config(name, %s::text, false) FROM pg_settings WHERE name = %s", setting[::-1])
        connection.commit()

    return engine


def _session_settings(cut_off_seconds: int) -> dict[str, str]:
    """PostgreSQL's settings: the first probe after a third of the time, then four more; and all of it for unconfirmed data."""
    return {
        "tcp_keepalives_idle": str(max(1, cut_off_seconds // 3)),
        "tcp_keepalives_interval": str(max(1, cut_off_seconds // 6)),
        "tcp_keepalives_count": "4",
        "tcp_user_timeout": str(cut_off_seconds * 1000),
        "lock_timeout": str(BUSY_SECONDS * 1000),
    }


def _raise_database_errors(engine: sa.Engine) -> None:
    """Makes the engine raise `DatabaseError` instead of the driver's errors, which may quote rows."""

    @sa.event.listens_for(engine, "handle_error")
    def unusable(context: sa.engine.ExceptionContext) -> None:
        if isinstance(context.sqlalchemy_exception, sa.exc.DBAPIError) and not context.is_pre_ping:
            _raise(context.sqlalchemy_exception)


def _raise(error: sa.exc.DBAPIError) -> NoReturn:
    raise DatabaseError(_sentence(error)) from None


def _sentence(error: sa.exc.DBAPIError | OSError) -> str:
    """The driver's words if they name only host and user; of other errors, which may quote data, the class."""
    original = error.orig if isinstance(error, sa.exc.DBAPIError) else error.strerror
    words = (str(original).strip().splitlines() or ["no reason given"])[0]
    words = INVALID.sub(r'\1"***"', words)
    if "database is locked" in words or "lock timeout" in words:
        return (
            f"The ledger's database (CIO_LEDGER_URL) was kept locked by another process for {BUSY_SECONDS} seconds:"
            " run this again when that one is done."
        )
    plain = (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError)
    if isinstance(error, sa.exc.DBAPIError) and not isinstance(error, plain) and type(error) is not sa.exc.DatabaseError:
        words = f"{type(original).__name__}"
    return f"The ledger's database (CIO_LEDGER_URL) cannot be used: {with_hint(words.rstrip('.'))}"
