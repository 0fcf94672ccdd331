"""Dagster's SQLite storage with one SQLAlchemy engine a database.

Dagster 1.13 makes a new engine for each event that it stores, so SQLAlchemy compiles each statement anew: a fifth of what a
small day costs. There is no setting for it. Its version is pinned, and a test sees that this still has an effect.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sqlalchemy as sa
from dagster._core.storage.event_log.sqlite import sqlite_event_log
from dagster._core.storage.runs.sqlite import sqlite_run_storage

ENGINES = 32
"""A run has a database of its own, so a backfill would keep an engine for each of its runs."""


def keep_engines() -> None:
    """From here on Dagster's storages share the engines of this process. They have no pool, so no file stays open."""
    for module in (sqlite_event_log, sqlite_run_storage):
        module.create_engine = _engine  # type: ignore[attr-defined]


def _engine(url: str, connect_args: dict[str, Any] | None = None, **options: Any) -> sa.Engine:
    return _kept(url, tuple(sorted((connect_args or {}).items())), tuple(sorted(options.items(), key=str)))


@lru_cache(ENGINES)
def _kept(url: str, connect_args: tuple[tuple[str, Any], ...], options: tuple[tuple[str, Any], ...]) -> sa.Engine:
    return sa.create_engine(url, connect_args=dict(connect_args), **dict(options))
