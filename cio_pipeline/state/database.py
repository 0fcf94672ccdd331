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
from cio_pipeline.state.postgresql import postgresql_engine
from cio_pipeline.state.sqlite import sqlite_engine, with_hint

BUSY_SECONDS = 300
"""The longest that a writer waits for another one, or any connection for a lock of PostgreSQL."""

CUT_OFF_SECONDS = 60
"""After this time PostgreSQL ends the session of a host that is cut off; the default of CIO_LEDGER_LOCK_SECONDS."""

SCHEMA_LOCK = 0x63696F01
"""A key of PostgreSQL's advisory locks, which hold within one database."""

ESCAPED = re.compile(r"\\[0\\]")

INVALID = re.compile(r'(\binvalid\b[^"]*)"[^"]*"')
"""The part of a URL that libpq cannot read, as it quotes it: this may be a password in the wrong place."""

T = TypeVar("T")


class DatabaseError(PipelineError):
    """The database cannot be used; the message is one sentence that names CIO_LEDGER_URL, but not its value."""


@dataclass(frozen=True)
class SchemaVersion:
    """The version of a set of tables; `number` increases whenever they, or what they mean, change."""

    name: str
    number: int


class Text(sa.TypeDecorator[str]):
    """Text that may contain NUL, which PostgreSQL does not store: it becomes `\\0`, and a backslash becomes two."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect | None) -> str | None:  # noqa: ARG002
        """Returns the text as the database stores it."""
        return value and value.replace("\\", r"\\").replace("\0", r"\0")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002
        """Returns the original text."""
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
    """Returns this process's engine for the database at `url`. With a version, creates the tables of `metadata` if missing.

    cut_off_seconds: how long PostgreSQL keeps the session, and its locks, of a host that no longer answers. Raises
    `DatabaseError` if the tables are of another version. Whatever the engine raises later is a `DatabaseError`, too.
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
    """A connection that only reads. On SQLite, neither it nor a writer waits for the other."""
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
    """Returns the texts as the only column of a table that a query can join, of any length. Nothing is written for it."""
    bound = Text().process_bind_param
    kept = [bound(text, None) for text in texts]
    column = sa.column("value", Text())
    if engine.dialect.name == "postgresql":
        array = sa.cast(sa.bindparam("texts", kept, unique=True), postgresql.ARRAY(sa.Text()))
        return sa.func.unnest(array).table_valued(column).render_derived().c.value
    return sa.func.json_each(json.dumps(kept)).table_valued(column).c.value


def insert(connection: sa.Connection, table: sa.Table) -> postgresql.Insert:
    """Returns an INSERT with `on_conflict_do_update`, which SQLAlchemy has in a module for each dialect."""
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement: postgresql.Insert = dialect.insert(table)
    return statement


def execute_by_driver(transaction: sa.Connection, statement: str, values: tuple[Any, ...] | list[tuple[Any, ...]]) -> None:
    """Executes a statement with `?` for its values: once, or with each of a list of values.

    Without SQLAlchemy's processing, which is slow for statements with thousands of rows.
    """
    mark = "%s" if transaction.dialect.name == "postgresql" else "?"
    transaction.exec_driver_sql(statement.replace("?", mark), values)


def chunks(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yields the items in lists of at most `size`."""
    while chunk := list(islice(items, size)):
        yield chunk


def is_in_memory(engine: sa.Engine) -> bool:
    """Returns whether it is a SQLite database without a file, which no other process can see."""
    return engine.dialect.name == "sqlite" and engine.url.database in (None, "", ":memory:")


@contextmanager
def _without_driver_errors() -> Iterator[None]:
    """Removes the driver's error, which SQLAlchemy chains to ours, because PostgreSQL's quotes rows."""
    try:
        yield
    except DatabaseError as error:
        error.__context__ = None
        raise error from None


def _engine(url: str, cut_off_seconds: int) -> sa.Engine:
    """Returns one engine for each database and process, as a fork must not use its parent's connections."""
    with _making_engine:
        key = (url, cut_off_seconds, os.getpid())
        engine = _engines.get(key) or _new_engine(url, cut_off_seconds)
        if not is_in_memory(engine):
            _engines[key] = engine
        return engine


def _new_engine(url: str, cut_off_seconds: int) -> sa.Engine:
    if url.startswith("sqlite"):
        engine = sqlite_engine(url, BUSY_SECONDS)
    else:
        try:
            engine = postgresql_engine(url, BUSY_SECONDS, cut_off_seconds)
        except ModuleNotFoundError as missing:
            raise DatabaseError(f"CIO_LEDGER_URL needs {missing.name}: install the extra, cio_pipeline[postgres].") from missing
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
    """Returns whether the tables exist. Raises `DatabaseError` if they are of another version."""
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
            f"CIO_LEDGER_URL names a database (if unset: ledger.db in CIO_DATA_DIR) whose tables of the {version.name} belong"
            " to another version of cio_pipeline: name an empty database, or keep using the version that created it (an empty"
            " ledger knows of no delivery, so everything is sent again)."
        )
    return True


def _raise_database_errors(engine: sa.Engine) -> None:
    """Makes the engine raise `DatabaseError` instead of the driver's errors, which may quote rows."""

    @sa.event.listens_for(engine, "handle_error")
    def unusable(context: sa.engine.ExceptionContext) -> None:
        if isinstance(context.sqlalchemy_exception, sa.exc.DBAPIError) and not context.is_pre_ping:
            _raise(context.sqlalchemy_exception)


def _raise(error: sa.exc.DBAPIError) -> NoReturn:
    raise DatabaseError(_sentence(error)) from None


def _sentence(error: sa.exc.DBAPIError | OSError) -> str:
    """Returns a sentence with the driver's words if these name only host and user; otherwise they may quote data, and the
    sentence names only the error's class."""
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
