"""Dagster's SQLite storage with one SQLAlchemy engine for each database, which keeps its connections.

Dagster 1.13 creates an engine for each event that it stores, and disposes of it. So SQLAlchemy compiles each statement again,
and SQLite writes its WAL back and waits for the disk, which is most of what a small day costs. It also loads its migrations
several times for each database. There is no setting for this, so three of Dagster's modules and a function of Alembic are
patched, but only in processes that this package's own commands start. Dagster's version is pinned, and tests check that this
still has an effect. Alembic is not a dependency of our own: Dagster brings it, and without Dagster there is nothing to patch.
"""

from __future__ import annotations

import weakref
from functools import cache, lru_cache
from typing import Any

import sqlalchemy as sa
from alembic.config import Config
from alembic.script import ScriptDirectory
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage
from dagster._core.storage.schedules.sqlite import sqlite_schedule_storage

_FROM_CONFIG = ScriptDirectory.from_config

ENGINES = 32
"""The most engines that are kept. Each run has its own database, so a backfill would otherwise keep one, with its open files,
for each of its runs."""


def keep_engines() -> None:
    """Makes Dagster's storages share the engines of this process from now on."""
    for module in (sqlite_event_log, sqlite_run_storage, sqlite_schedule_storage):
        module.create_engine = _engine  # type: ignore[attr-defined]
    ScriptDirectory.from_config = _scripts  # type: ignore[method-assign]


def _engine(url: str, connect_args: dict[str, Any] | None = None, **options: Any) -> sa.Engine:
    options.pop("poolclass", None)  # Dagster asks for NullPool
    return _kept(url, tuple(sorted((connect_args or {}).items())), tuple(sorted(options.items(), key=str)))


def _scripts(config: Config) -> ScriptDirectory:
    """Returns the migrations, which Dagster asks for two or three times for each database, and each run has one."""
    return _kept_scripts(str(config.get_main_option("script_location")))


@cache
def _kept_scripts(location: str) -> ScriptDirectory:
    """Returns the migrations of Dagster's databases. To read them loads 50 modules each time."""
    return _FROM_CONFIG(Config(config_args={"script_location": location}))


def _stay_open(close: bool = True) -> None:
    """Does nothing, as Dagster disposes of its engine after each event."""


@lru_cache(ENGINES)
def _kept(url: str, connect_args: tuple[tuple[str, Any], ...], options: tuple[tuple[str, Any], ...]) -> sa.Engine:
    engine = sa.create_engine(url, connect_args=dict(connect_args), **dict(options))
    weakref.finalize(engine, engine.pool.dispose)
    engine.dispose = _stay_open  # type: ignore[method-assign]

    @sa.event.listens_for(engine, "connect")
    def survive_the_process(connection: Any, _: Any) -> None:
        """As in the ledger: what is committed survives the process; a crash of the machine may lose the last of it."""
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine
