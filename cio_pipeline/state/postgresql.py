"""An engine for a PostgreSQL database. Its connections end if either side is cut off, and no wait for a lock is endless."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

MAX_CONNECTIONS = 4
"""The most connections of a process: one holds the delivery lock, and its threads take turns with the others."""

KEEPALIVE = {"connect_timeout": 10, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
"""libpq's parameters: they detect a PostgreSQL that is gone, and keep firewalls from dropping idle connections."""

POOL = {"pool_size": MAX_CONNECTIONS, "max_overflow": 0, "pool_timeout": 3600}
"""A thread may wait long for a connection: those that have one wait for the database, for which there are shorter limits."""


def postgresql_engine(url: str, lock_seconds: int, cut_off_seconds: int) -> sa.Engine:
    """The engine, with psycopg 3, whatever driver the URL names, since SQLAlchemy's default has changed with 2.1.

    lock_seconds: how long a connection waits for a lock; cut_off_seconds: how long PostgreSQL keeps the session, and its locks,
    of a host that no longer answers. Raises `ModuleNotFoundError` if psycopg is not installed.
    """
    location = sa.make_url(url).set(drivername="postgresql+psycopg")
    engine = sa.create_engine(location, hide_parameters=True, connect_args=KEEPALIVE, pool_pre_ping=True, **POOL)
    settings = _session_settings(lock_seconds, cut_off_seconds)

    @sa.event.listens_for(engine, "connect")
    def bound_waits(connection: Any, _: Any) -> None:
        """Makes the server detect a client that is cut off (by default after two hours), and limits the wait for a lock."""
        with connection.cursor() as cursor:
            for setting in settings.items():
                cursor.execute("SELECT set_config(name, %s::text, false) FROM pg_settings WHERE name = %s", setting[::-1])
        connection.commit()

    return engine


def _session_settings(lock_seconds: int, cut_off_seconds: int) -> dict[str, str]:
    """PostgreSQL's settings: the first probe after a third of the time, then four more; and all of it for unconfirmed data."""
    return {
        "tcp_keepalives_idle": str(max(1, cut_off_seconds // 3)),
        "tcp_keepalives_interval": str(max(1, cut_off_seconds // 6)),
        "tcp_keepalives_count": "4",
        "tcp_user_timeout": str(cut_off_seconds * 1000),
        "lock_timeout": str(lock_seconds * 1000),
    }
